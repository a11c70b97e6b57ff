"""Bodies as JSON schema: what the OpenAPI document says of them.

Each property has `x-treatment`: "honoured", "without effect" or "only at", as base.py explains.
"""

from dataclasses import dataclass
from typing import Any

from .base import Body

REF = "#/components/schemas/{model}"
NULL = {"type": "null"}

Schema = dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """Says that the objects in a field are checked later, each against one of `models`.

    For a field of type `dict[str, Any]` or `list[Any]`, also where it is one of several:
    `messages: Annotated[list[Any], Checked((Message,))]`.
    """

    models: tuple[type[Body], ...]


def schemas_of(body: type[Body]) -> dict[str, Schema]:
    """The schemas of `body` and of all bodies in it, by name."""
    schema = body.model_json_schema(ref_template=REF)
    found: dict[str, Schema] = schema.pop("$defs", {})
    properties = schema.setdefault("properties", {})
    for name, field in body.model_fields.items():
        known = properties[name]
        known.pop("title", None)
        if known.get("default", ...) is None:
            del known["default"]
        for checked in (each for each in field.metadata if isinstance(each, Checked)):
            known = _put(known, [{"$ref": REF.format(model=each.__name__)} for each in checked.models])
            for each in checked.models:
                found |= schemas_of(each)
        if not field.is_required():
            known = _or_null(known)
        properties[name] = {**known, "x-treatment": "honoured"}
    for name in sorted(body.without_effect):
        properties[name] = {"description": "Has no effect here.", "x-treatment": "without effect"}
    for name, values in body.only_at.items():
        text = "Not supported: accepted only at a value that asks for nothing."
        properties[name] = {"description": text, "enum": [*values, None], "x-treatment": "only at"}
    return {**found, body.__name__: schema}


def _put(field: Schema, inner: list[Schema]) -> Schema:
    """`field` with one of `inner` where it takes any object, or a list of such."""
    if "anyOf" in field:
        return {**field, "anyOf": [_put(each, inner) for each in field["anyOf"]]}
    one = inner[0] if len(inner) == 1 else {"anyOf": inner}
    if field.get("type") == "array":
        items = field.get("items", {})
        return {**field, "items": _put(items, inner) if "anyOf" in items else one}
    return one if field.get("type") == "object" else field


def _or_null(field: Schema) -> Schema:
    if NULL in field.get("anyOf", ()):
        return field
    outer = {name: value for name, value in field.items() if name in ("default", "description")}
    inner = {name: value for name, value in field.items() if name not in outer}
    return {"anyOf": [*inner.get("anyOf", [inner]), NULL], **outer}
