"""Calls that have to be made: a JSON list of {"name", "arguments"}, however the model writes its own.

The output is held to a schema of that list, made of the tools' schemas: so it is a call, of a tool that
may be called, with arguments that fit.
"""

from typing import Any

from ..parser import Source, Steps
from .format import ToolFormat, Tools, read_calls, read_json_calls


def calls_schema(tools: Tools, most: int | None) -> dict[str, Any]:
    """The JSON schema of a list of one to `most` calls of `tools`; None is no bound."""
    calls = [_call_schema(name, tools[name], f"#/items/anyOf/{index}") for index, name in enumerate(tools)]
    bound = {} if most is None else {"maxItems": most}
    return {"type": "array", "minItems": 1, **bound, "items": {"anyOf": calls}}


def arguments_schema(parameters: Any) -> dict[str, Any]:
    """The JSON schema of the arguments of a tool with these `parameters`."""
    # no parameters are known, so there are none
    return {"type": "object", **(parameters or {"additionalProperties": False})}


def _call_schema(name: str, parameters: Any, place: str) -> dict[str, Any]:
    arguments = arguments_schema(parameters)
    return {
        "type": "object",
        "properties": {
            "name": {"const": name},
            "arguments": _moved(arguments, f"{place}/properties/arguments"),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references begin at `place`, where its root has come to lie."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


def _read(source: Source, tools: Tools) -> Steps[None]:
    def calls(mark: str) -> Steps[None]:
        yield from read_json_calls(source, tools)

    yield from read_calls(source, ("[",), calls)


FORCED = ToolFormat("forced", _read, (), ())
