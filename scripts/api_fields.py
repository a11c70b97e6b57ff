"""Write docs/api-fields.md: every field of every route's body, from the OpenAPI document of the server.

python scripts/api_fields.py
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from radixmesh.engine.server.app import create_app  # noqa: E402
from radixmesh.engine.server.options import ServerOptions  # noqa: E402
from tests.engine.server.scripted import ScriptedLLM  # noqa: E402

PAGE = ROOT / "docs/api-fields.md"
BEGIN = """# Every field of every request

Written by `scripts/api_fields.py` from the server's OpenAPI document; a test compares them, and another,
`tests/engine/server/test_fields.py`, proves for each field what stands here. `null` always means
"not given".

- *honoured*: a value outside the type, or that cannot be honoured, gets a 400 that names the field;
- *no effect*: any value is accepted, for it asks nothing of the model;
- *refused*: a 400 that names the field, but for the values shown, which ask for nothing.

A field that is in no table is refused too.
"""


def page(document: dict[str, Any]) -> str:
    """The page for an OpenAPI document: a table for each body, with where it stands."""
    schemas = document["components"]["schemas"]
    places = _places(document)
    tables = [_table(name, places[name], schemas[name]) for name in schemas if name in places]
    return "\n".join([BEGIN, *tables])


def _places(document: dict[str, Any]) -> dict[str, list[str]]:
    """Body -> the routes whose body it is, and the fields of others that hold it."""
    found: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                for name in _references(media["schema"]):
                    found.setdefault(name, []).append(f"`{method.upper()} {path}`")
    for holder, schema in document["components"]["schemas"].items():
        for field, value in schema.get("properties", {}).items():
            for name in _references(value):
                found.setdefault(name, []).append(f"`{field}` of {holder}")
    return {name: sorted(set(places)) for name, places in found.items() if not name.startswith("Error")}


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rsplit("/")[-1]
        for each in schema.values():
            yield from _references(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)


def _table(name: str, places: list[str], schema: dict[str, Any]) -> str:
    rows = [f"| `{field}` | {_treatment(value)} |" for field, value in schema["properties"].items()]
    head = ["| field | treatment | type, or accepted values |", "|---|---|---|"]
    return "\n".join([f"## {name}", "", f"{', '.join(places)}", "", *head, *rows, ""])


def _treatment(field: dict[str, Any]) -> str:
    match field.get("x-treatment"):
        case "without effect":
            return "no effect | any"
        case "only at":
            shown = ", ".join(f"`{json.dumps(each)}`" for each in field["enum"])
            return f"refused | {shown}"
    default = f", by default `{json.dumps(field['default'])}`" if "default" in field else ""
    return f"honoured | {_type(field)}{default}"


def _type(schema: dict[str, Any]) -> str:
    """A schema in few words."""
    if "anyOf" in schema:
        kinds = [_type(each) for each in schema["anyOf"] if each != {"type": "null"}]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/")[-1])
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if values:
        return ", ".join(f"`{json.dumps(each)}`" for each in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


def document() -> dict[str, Any]:
    """The server's own document."""
    app = create_app(ScriptedLLM("{{ messages }}", "a"), ServerOptions())  # type: ignore[arg-type]
    return app.openapi()


if __name__ == "__main__":
    PAGE.write_text(page(document()))
