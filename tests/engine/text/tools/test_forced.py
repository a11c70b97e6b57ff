"""Calls that have to be made: the schema of the output, and how the output is read."""

import json
from typing import Any

import jsonschema
import pytest

from radixmesh.engine.text.output_parser import OutputParser
from radixmesh.engine.text.parser import Arguments, CallStart
from radixmesh.engine.text.tools.forced import FORCED, calls_schema

TOOLS: dict[str, Any] = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "now": {},
    "plan": {
        "$defs": {"step": {"type": "object", "properties": {"next": {"$ref": "#/$defs/step"}}}},
        "properties": {"first": {"$ref": "#/$defs/step"}, "again": {"$ref": "#"}},
        "additionalProperties": False,
    },
}


def call(name: str, arguments: object) -> dict[str, object]:
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("output", "fits"),
    [
        ([call("weather", {"city": "Rome"})], True),
        ([call("now", {}), call("weather", {"city": "Rome"})], True),
        ([call("plan", {"first": {"next": {"next": {}}}, "again": {"first": {}}})], True),
        ([], False),
        ([call("weather", {})], False),
        ([call("then", {})], False),
        ([call("now", {"zone": "CET"})], False),
        ([call("plan", {"first": {"next": 3}})], False),
        ([call("plan", {"again": {"last": {}}})], False),
        ([{**call("now", {}), "why": "because"}], False),
        (call("now", {}), False),
    ],
)
def test_the_schema_takes_calls_of_the_tools_and_nothing_else(output: Any, fits: bool) -> None:
    schema = calls_schema(TOOLS, None)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(output) is fits


def test_one_call_alone() -> None:
    check = jsonschema.Draft202012Validator(calls_schema(TOOLS, 1))
    assert check.is_valid([call("now", {})]) and not check.is_valid([call("now", {})] * 2)


def test_reading_cut_anywhere() -> None:
    calls = [call("weather", {"city": 'Köln "]"'}), call("now", {})]
    text = json.dumps(calls, ensure_ascii=False)
    for cut in range(len(text) + 1):
        parser = OutputParser(None, lambda source: FORCED.read(source, TOOLS), True)
        events = [*parser.add(text[:cut]), *parser.add(text[cut:]), *parser.end()]
        names = [each.name for each in events if isinstance(each, CallStart)]
        told = "".join(each.text for each in events if isinstance(each, Arguments))
        assert names == ["weather", "now"] and told == '{"city": "Köln \\"]\\""}{}'
