"""Qwen 3 Coder: <function=name> with a <parameter=key> for each argument, whose types the schema tells."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ..parser import Arguments, CallEnd, CallStart, Malformed, Source, Steps, Truncated, tell_until
from .format import ToolFormat, Tools, check_name, read_calls, to_json
from .literal import read_literal

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_NAME = re.compile(r"[^<>\n]*")
# JSON schema's names -> Python's types
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def _read(source: Source, tools: Tools) -> Steps[None]:
    def call(mark: str) -> Steps[None]:
        if mark == _CALL:
            yield from source.expect(_FUNCTION)
        name = check_name(tools, (yield from source.run(_NAME)).strip())
        yield from source.expect(">")
        yield from _parameters(source, name, tools[name])
        yield from source.space()
        yield from source.mark(_CALL_END)

    yield from read_calls(source, (_CALL, _FUNCTION), call)  # models leave out the first at times


def _parameters(source: Source, name: str, schema: Mapping[str, Any]) -> Steps[None]:
    """The parameters, up to and with the function's end; the first one begins the call."""
    known: set[str] = set()
    while True:
        yield from source.space()
        if (yield from source.mark(_FUNCTION_END)):
            break
        yield from source.expect(_PARAMETER)
        key = (yield from source.run(_NAME)).strip()
        if not key or key in known:
            raise Malformed
        yield from source.expect(">")
        yield from source.mark("\n")
        source.tell()
        if not known:
            yield CallStart(name)
        yield Arguments(f"{', ' if known else '{'}{to_json(key)}: ")
        known.add(key)
        yield from _value(source, _types(schema, key))
    source.tell()
    if not known:
        yield CallStart(name)
    yield Arguments("}" if known else "{}")
    yield CallEnd()


def _value(source: Source, types: set[str]) -> Steps[None]:
    """A value without the line ends around it; a string is told as it comes."""
    if types == {"string"}:
        yield Arguments('"')
        if (yield from tell_until(source, ("\n" + _PARAMETER_END, _PARAMETER_END), _escaped, False)) is None:
            raise Truncated
        source.tell()
        yield Arguments('"')
    else:
        text = (yield from source.until(_PARAMETER_END)).removesuffix("\n")
        source.tell()
        yield Arguments(_typed(text, types))


def _escaped(text: str) -> Arguments:
    return Arguments(json.dumps(text, ensure_ascii=False)[1:-1])


def _types(schema: Mapping[str, Any], key: str) -> set[str]:
    """The types that the schema allows for a parameter; a string if it does not say."""
    properties = schema.get("properties")
    found = properties.get(key) if isinstance(properties, dict) else None
    choices = [found] if isinstance(found, dict) else []
    for union in ("anyOf", "oneOf"):
        if choices and isinstance(choices[0].get(union), list):
            choices = [each for each in choices[0][union] if isinstance(each, dict)]
    types: set[str] = set()
    for each in choices:
        named = each.get("type")
        types.update(name for name in (named if isinstance(named, list) else [named]) if name in _TYPES)
    return types or {"string"}


def _typed(text: str, types: set[str]) -> str:
    """`text` as JSON of one of `types`; as a string if it is of none, for nothing may be lost."""
    wanted = {kind for name in types for kind in _TYPES[name]}
    for read in (json.loads, read_literal):
        try:
            value = read(text)
            if type(value) in wanted:
                return to_json(value)
        except (ValueError, RecursionError, Malformed):
            pass
    return to_json(text)


QWEN3_CODER = ToolFormat(
    "qwen3_coder",
    _read,
    (_CALL, _CALL_END, _FUNCTION, _FUNCTION_END, _PARAMETER, _PARAMETER_END),
    (_PARAMETER,),
)
