"""Every tool format on its published examples; expected results are written by hand."""

import json
from typing import Any

import pytest

from radixmesh.engine.text.parser import Arguments, CallEnd, CallStart, Event, Parser, Text
from radixmesh.engine.text.tools.format import Tools
from radixmesh.engine.text.tools.registry import TOOL_FORMATS, tool_format_of

TOOLS: Tools = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "ratio": {"type": "number"},
            "exact": {"type": ["boolean", "null"]},
            "where": {"type": "object"},
            "tags": {"anyOf": [{"type": "array"}, {"type": "string"}]},
        },
    },
    "now": {},
}


def parse(name: str, *pieces: str, tools: Tools = TOOLS) -> list[Event]:
    """The events of a text, with neighbours of one kind joined."""
    parser = Parser(lambda source: TOOL_FORMATS[name].read(source, tools))
    joined: list[Event] = []
    for event in [each for piece in pieces for each in parser.add(piece)] + parser.end():
        last = joined[-1] if joined else None
        if isinstance(event, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + event.text)
        elif isinstance(event, Arguments) and isinstance(last, Arguments):
            joined[-1] = Arguments(last.text + event.text)
        else:
            joined.append(event)
    return joined


def call(name: str, arguments: str) -> list[Event]:
    return [CallStart(name), Arguments(arguments), CallEnd()]


WEATHER = call("get_weather", '{"city": "Paris"}')
NOW = call("now", "{}")

# format, text, events
EXAMPLES: list[tuple[str, str, list[Event]]] = [
    # Qwen 2.5 and 3: calls each between tags
    ("qwen25", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', WEATHER),
    (
        "hermes",
        'I will look.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        [Text("I will look."), *WEATHER, *NOW],
    ),
    # Hermes 2 Pro: arguments first
    ("hermes", '<tool_call>\n{"arguments": {"city": "Paris"}, "name": "get_weather"}\n</tool_call>', WEATHER),
    ("hermes", '<tool_call>{"name": "now"}</tool_call> done', [*NOW, Text("done")]),
    # Llama 3.1 and later
    ("llama3", '{"name": "get_weather", "parameters": {"city": "Paris"}}', WEATHER),
    ("llama3", '<|python_tag|>{"type": "function", "name": "now", "parameters": {}}', NOW),
    (
        "llama3",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "now", "parameters": {}}',
        WEATHER + NOW,
    ),
    # Mistral before and since tokenizer v11
    ("mistral", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]', WEATHER),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "A1b2C3d4E"}, '
        '{"name": "now", "arguments": {}, "id": "A1b2C3d4F"}]',
        WEATHER + NOW,
    ),
    (
        "mistral",
        'Sure.[TOOL_CALLS]get_weather[CALL_ID]A1b2C3d4E[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}',
        [Text("Sure."), *WEATHER, *NOW],
    ),
    # Llama 3.2 and 4
    ("pythonic", "[get_weather(city='Paris'), now()]", WEATHER + NOW),
    (
        "pythonic",
        "<|python_start|>[get_weather(city=\"it's\", days=-3, tags=['a', None], where={'x': (1, True)},)]"
        "<|python_end|>",
        call("get_weather", '{"city": "it\'s", "days": -3, "tags": ["a", null], "where": {"x": [1, true]}}'),
    ),
    # Qwen 3 Coder
    (
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        WEATHER,
    ),
    (
        "qwen3_coder",
        "Two calls.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n"
        'first "line"\n\n\tlast\n</parameter>\n'
        "<parameter=days>\n2\n</parameter>\n<parameter=ratio>0.5</parameter>\n"
        "<parameter=exact>\nTrue\n</parameter>\n"
        '<parameter=where>\n{"x": [1]}\n</parameter>\n<parameter=tags>\nnews\n</parameter>\n'
        "<parameter=more>\n7\n</parameter>\n</function>\n</tool_call>\n<function=now>\n</function>\n</tool_call>",
        [
            Text("Two calls."),
            *call(
                "get_weather",
                '{"city": "first \\"line\\"\\n\\n\\tlast", "days": 2, "ratio": 0.5, "exact": true, '
                '"where": {"x": [1]}, "tags": "news", "more": "7"}',
            ),
            *NOW,
        ],
    ),
    # what is not of the schema's type is not lost
    (
        "qwen3_coder",
        "<function=get_weather><parameter=days>\nNaN\n</parameter><parameter=ratio>NaN</parameter></function>",
        call("get_weather", '{"days": "NaN", "ratio": "NaN"}'),
    ),
    # DeepSeek V3 and R1, then V3.1
    (
        "deepseekv3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        WEATHER + NOW,
    ),
    (
        "deepseekv31",
        "Wait.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [Text("Wait."), *WEATHER, *NOW],
    ),
    # gpt-oss: the recipient stands in the role's or in the channel's part of the header
    (
        "gpt-oss",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Paris"}<|call|>',
        WEATHER,
    ),
    (
        "gpt-oss",
        "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
        '{"city": "Paris"}<|call|>',
        WEATHER,
    ),
]


@pytest.mark.parametrize(("name", "text", "expected"), EXAMPLES)
def test_examples(name: str, text: str, expected: list[Event]) -> None:
    assert parse(name, text) == expected
    assert parse(name, *text) == expected  # a character at a time
    assert all(json.loads(event.text) is not None for event in expected if isinstance(event, Arguments))


# Text that looks like a call, up to where it does not.
TEXTS = [
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "arguments": "none"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"surname": "now", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {}, "name": "now"'),
    ("hermes", "<tool_call>get_weather(city='Paris')</tool_call>\n"),
    ("hermes", " \n <tool_call>\n"),
    ("hermes", "a <tool_cal"),
    ("hermes", "<tool_call><tool_call><tool_call"),
    ("llama3", '{"answer": {"name": 1}} and {"name": "Bob", "parameters": {}}'),
    ("llama3", "<|python_tag|>brave_search.call(query='x')"),
    ("mistral", "[TOOL_CALLS] [] [TOOL_CALLS]unknown[ARGS]{}"),
    (
        "pythonic",
        "[1, 2] [x for x in y] [now] [get_weather(x)] [get_weather(city=f('a'))] [get_weather(city={1})]",
    ),
    ("pythonic", "[get_weather(city='Paris"),
    ("pythonic", "[get_weather(city=1e999)]"),
    ("qwen3_coder", "<function=unknown><parameter=a>1</parameter></function>"),
    ("qwen3_coder", "<tool_call>\n<function=get_weather>\nParis"),
    ("deepseekv3", "<｜tool▁calls▁begin｜> nothing <｜tool▁calls▁end｜>"),
    ("deepseekv31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>unknown<｜tool▁sep｜>{}<｜tool▁call▁end｜>"),
    ("gpt-oss", "<|channel|>final<|message|>It is {now}"),
    ("gpt-oss", "<|channel|>commentary to=functions.unknown<|message|>{}<|call|>"),
    ("gpt-oss", "<|channel|>commentary to=functions.now<|message|>not json<|call|>"),
]


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_what_is_no_call_is_text(name: str, text: str) -> None:
    assert parse(name, text) == [Text(text)]
    assert parse(name, *text) == [Text(text)]


# Calls that begin well: nothing is lost, and the call has no end.
BROKEN: list[tuple[str, str, list[Event]]] = [
    (
        "hermes",
        '<tool_call>{"name": "get_weather", "arguments": {"city": Paris}}</tool_call>',
        [CallStart("get_weather"), Arguments('{"city": '), Text("Paris}}</tool_call>")],
    ),
    (
        "hermes",
        '<tool_call>{"name": "get_weather", "arguments": {"city": "a\\u00',
        [CallStart("get_weather"), Arguments('{"city": "a\\u00')],
    ),
    (
        "hermes",
        '<tool_call>{"name": "get_weather", "arguments": {"days": 01}} '
        '<tool_call>{"name": "now", "arguments": {}}',
        [CallStart("get_weather"), Arguments('{"days": '), Text("01}}"), *NOW],
    ),
    (
        "pythonic",
        "[get_weather(city='Paris', days=f(2))] then",
        [CallStart("get_weather"), Arguments('{"city": "Paris"'), Text(", days=f(2))] then")],
    ),
    (
        "qwen3_coder",
        "<function=get_weather><parameter=city>\nPar",
        [CallStart("get_weather"), Arguments('{"city": "Par')],
    ),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "then", "arguments": {}}]',
        [*NOW, Text(', {"name": "then", "arguments": {}}]')],
    ),
]


@pytest.mark.parametrize(("name", "text", "expected"), BROKEN)
def test_a_call_that_breaks_off(name: str, text: str, expected: list[Event]) -> None:
    assert parse(name, text) == expected
    assert parse(name, *text) == expected


def test_a_call_is_good_whatever_follows_its_arguments() -> None:
    for tail in ("</tool_call>", "}}</tool_call>", ', "id": tru', "}\n", ""):
        events = parse("hermes", '<tool_call>{"name": "now", "arguments": {}' + tail)
        assert events[:3] == NOW
    assert parse("hermes", '<tool_call>{"name": "now", "arguments": {}</tool_call>ok') == [*NOW, Text("ok")]


def test_arguments_are_told_as_they_come() -> None:
    """No character of the arguments waits for the next one, but in a number, a word or an escape."""
    parser = Parser(lambda source: TOOL_FORMATS["hermes"].read(source, TOOLS))
    parser.add('<tool_call>{"name": "get_weather", "arguments": ')
    assert parser.add("{") == [CallStart("get_weather"), Arguments("{")]
    assert parser.add('"city": "Pa') == [Arguments('"city": "Pa')]
    assert parser.add("ris") == [Arguments("ris")]
    assert parser.add("\\") == []
    assert parser.add('"!') == [Arguments('\\"!')]
    assert parser.add('", "days": 1') == [Arguments('", "days": ')]
    assert parser.add("2}") == [Arguments("12}"), CallEnd()]


def test_text_is_told_as_it_comes() -> None:
    parser = Parser(lambda source: TOOL_FORMATS["hermes"].read(source, TOOLS))
    assert parser.add("Hello") == [Text("Hello")]
    assert parser.add(" <tool") == []
    assert parser.add("s>") == [Text(" <tools>")]
    assert parser.add("\n") == [] and parser.end() == [Text("\n")]


def test_depth_costs_no_recursion() -> None:
    deep = '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}"
    assert parse("hermes", '<tool_call>{"name": "now", "arguments": ' + deep + "}") == call("now", deep)
    broken = "[now(a=" + "[" * 50_000
    assert parse("pythonic", broken + "]" * 50_000 + ")]") == [Text(broken + "]" * 50_000 + ")]")]


def test_odd_escapes_of_python_give_no_warning() -> None:
    (_, arguments, _) = parse("pythonic", r"[get_weather(city='\d')]")
    assert isinstance(arguments, Arguments) and json.loads(arguments.text) == {"city": r"\d"}


TEMPLATES: list[tuple[str, str | None]] = [
    ('<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>', "hermes"),
    ('<tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n</tool_call>', "hermes"),
    ("<tool_call>name\\n<arg_key>", None),
    ("<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>", "qwen3_coder"),
    ('{"name": function name, "parameters": dictionary of argument name and its value}', "llama3"),
    ("{{- '[TOOL_CALLS]' }}", "mistral"),
    ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "deepseek"),
    (
        "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]",
        "pythonic",
    ),
    ("<|start|>assistant<|channel|>analysis<|message|> functions.", "gpt-oss"),
    ("<|im_start|>", None),
]


@pytest.mark.parametrize(("template", "expected"), TEMPLATES)
def test_the_format_that_a_template_teaches(template: str, expected: str | None) -> None:
    found = tool_format_of(template)
    assert (found[0].name if found else None) == expected
    assert found is None or all(sign in template for sign in found[1].split(" and "))


def test_ids() -> None:
    assert TOOL_FORMATS["hermes"].new_id().startswith("call_")
    ids: set[Any] = {TOOL_FORMATS["mistral"].new_id() for _ in range(100)}
    assert len(ids) == 100 and all(len(each) == 9 and each.isalnum() for each in ids)
