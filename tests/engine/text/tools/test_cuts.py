"""However the same text is cut into pieces, the joined deltas are those of the whole text."""

import codecs
import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixmesh.backends.models.embedded import fetch_embedded
from radixmesh.engine.text.detokenizer import IncrementalDetokenizer
from radixmesh.engine.text.parser import Arguments, CallEnd, CallStart, Event, Parser, Text
from radixmesh.engine.text.tokenizer import Tokenizer, load_tokenizer
from radixmesh.engine.text.tools.registry import TOOL_FORMATS

TOOLS: dict[str, dict[str, Any]] = {
    "f": {"properties": {"n": {"type": "integer"}, "o": {"type": "object"}, "s": {"type": "string"}}},
    "get-it": {},
}
NAMES = sorted({each.name: key for key, each in TOOL_FORMATS.items()}.values())


def parse(name: str, pieces: list[str]) -> list[Event]:
    parser = Parser(lambda source: TOOL_FORMATS[name].read(source, TOOLS))
    joined: list[Event] = []
    for event in [each for piece in pieces for each in parser.add(piece)] + parser.end():
        last = joined[-1] if joined else None
        if isinstance(event, (Text, Arguments)):
            assert event.text, "an empty piece was told"
            if type(event) is type(last) and isinstance(last, (Text, Arguments)):
                joined[-1] = type(event)(last.text + event.text)
                continue
        joined.append(event)
    return joined


def byte_cuts(text: str, draw: random.Random, most: int) -> list[str]:
    """`text` cut at random bytes, as a detokenizer gives it: no piece ends within a character."""
    data, decoder = text.encode(), codecs.getincrementaldecoder("utf-8")()
    at, pieces = 0, []
    while at < len(data):
        size = draw.randint(1, most)
        pieces.append(decoder.decode(data[at : at + size]))
        at += size
    return pieces


# What comes out of calls written by the formats' own rules

KEYS = st.sampled_from(["n", "o", "s", "key", "ключ"])
STRINGS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ['}"', "\\", '\\"', "</tool_call>", "\n", "<|call|>", "[TOOL_CALLS]", "it's", "🌍{", "\t"]
    ),
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), STRINGS
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(STRINGS, inner, max_size=3)),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(sorted(TOOLS)), st.dictionaries(KEYS, VALUES, max_size=4)),
    min_size=1,
    max_size=3,
)
Calls = list[tuple[str, dict[str, Any]]]


def hermes(calls: Calls) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{n}", "arguments": {dump(a)}}}\n</tool_call>' for n, a in calls
    )


def llama3(calls: Calls) -> str:
    return "; ".join(f'{{"name": "{n}", "parameters": {dump(a)}}}' for n, a in calls)


def mistral(calls: Calls) -> str:
    return "".join(f"[TOOL_CALLS]{n}[ARGS]{dump(a)}" for n, a in calls)


def mistral_list(calls: Calls) -> str:
    return "[TOOL_CALLS] [" + ", ".join(f'{{"name": "{n}", "arguments": {dump(a)}}}' for n, a in calls) + "]"


def deepseek3(calls: Calls) -> str:
    one = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
    return (
        "<｜tool▁calls▁begin｜>"
        + "\n".join(one.format(n, dump(a)) for n, a in calls)
        + "<｜tool▁calls▁end｜>"
    )


def deepseek31(calls: Calls) -> str:
    one = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
    return (
        "<｜tool▁calls▁begin｜>" + "".join(one.format(n, dump(a)) for n, a in calls) + "<｜tool▁calls▁end｜>"
    )


def gpt_oss(calls: Calls) -> str:
    one = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"
    return "<|start|>assistant".join(one.format(n, dump(a)) for n, a in calls)


def pythonic(calls: Calls) -> str:
    return "[" + ", ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in calls) + "]"


def dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


WRITERS = [
    ("hermes", hermes),
    ("llama3", llama3),
    ("mistral", mistral),
    ("mistral", mistral_list),
    ("deepseekv3", deepseek3),
    ("deepseekv31", deepseek31),
    ("gpt-oss", gpt_oss),
    ("pythonic", pythonic),
]


@pytest.mark.parametrize(("name", "write"), WRITERS)
@settings(deadline=None, max_examples=50)
@given(calls=CALLS, before=st.sampled_from(["", "Let me look", "Äh"]), draw=st.randoms(use_true_random=False))
def test_calls_come_back(name: str, write: Any, calls: Calls, before: str, draw: random.Random) -> None:
    text = before + write(calls)
    events = parse(name, byte_cuts(text, draw, 9))
    assert events == parse(name, [text])
    got = [event for event in events if not isinstance(event, Text)]
    assert [event.name for event in got if isinstance(event, CallStart)] == [name for name, _ in calls]
    arguments = [json.loads(event.text) for event in got if isinstance(event, Arguments)]
    assert arguments == [each for _, each in calls]
    assert [event for event in events if isinstance(event, Text)] == ([Text(before)] if before else [])


@settings(deadline=None, max_examples=50)
@given(
    text=st.text(max_size=30).filter(lambda text: "</parameter>" not in text),
    value=VALUES,
    draw=st.randoms(use_true_random=False),
)
def test_parameters_of_qwen3_coder_come_back(text: str, value: object, draw: random.Random) -> None:
    source = (
        f"<tool_call>\n<function=f>\n<parameter=s>\n{text}\n</parameter>\n"
        f"<parameter=o>\n{dump({'a': value})}\n</parameter>\n</function>\n</tool_call>"
    )
    if "</parameter>" in dump(value):
        return
    (start, arguments, end) = parse("qwen3_coder", byte_cuts(source, draw, 9))
    assert (start, end) == (CallStart("f"), CallEnd()) and isinstance(arguments, Arguments)
    assert json.loads(arguments.text) == {"s": text, "o": {"a": value}}


# What comes out of anything at all

PIECES = [
    *(
        "<tool_call>",
        "</tool_call>",
        '{"name": "f", "arguments": ',
        '{"arguments": {"a": 1}, "name": "f"}',
        "}",
    ),
    *(
        '{"n": -1.5e3, "s": "\\u00e9\\n',
        '"}',
        "[[",
        "]",
        "tru",
        "true",
        "01",
        " \n",
        "text",
        "🌍",
        "é",
        "\\",
        '"',
    ),
    *("[TOOL_CALLS]", " [", "f[ARGS]", "f[CALL_ID]x1", "{}", ", ", "; ", "<|python_tag|>", '"parameters": '),
    *("[f(", "s='a", "'", "n=1", ")", "]", "<|python_start|>", "<|python_end|>", "get-it", "None"),
    *("<function=f>", "<parameter=s>\n", "\n</parameter>", "<parameter=n>7", "</parameter>", "</function>"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "function<｜tool▁sep｜>f\n```json\n",
        "f<｜tool▁sep｜>",
        "```",
    ),
    *(
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "<|start|>assistant",
        "<|channel|>",
        "<|message|>",
        "<|call|>",
    ),
    "commentary to=functions.f <|constrain|>json",
]
# Sequences of pieces, some cut short, so that tags are partial and calls break off anywhere.
SOUP = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.tuples(st.sampled_from(PIECES), st.integers(1, 12)).map(lambda pair: pair[0][: pair[1]]),
        st.text(max_size=3),
    ),
    max_size=14,
).map("".join)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(text=SOUP, draw=st.randoms(use_true_random=False))
def test_any_cut_of_any_text(name: str, text: str, draw: random.Random) -> None:
    expected = parse(name, [text])
    assert parse(name, list(text)) == expected
    assert parse(name, byte_cuts(text, draw, 12)) == expected
    check_events(text, expected)


def check_events(text: str, events: list[Event]) -> None:
    """A call is whole JSON of a known tool, or has no end; without calls the text is the text."""
    kinds = [type(event) for event in events]
    if CallStart not in kinds:
        assert events == ([Text(text)] if text else [])
    for index, event in enumerate(events):
        if isinstance(event, CallStart):
            assert event.name in TOOLS and kinds[index + 1] is Arguments
        elif isinstance(event, CallEnd):
            assert kinds[index - 2 : index] == [CallStart, Arguments]
            arguments = events[index - 1]
            assert isinstance(arguments, Arguments) and isinstance(json.loads(arguments.text), dict)


# Real tokens

EXAMPLES = [
    (
        "hermes",
        hermes([("f", {"s": 'naïve 🌍 "quoted" {[', "n": -12.5}), ("get-it", {"key": None})])
        + "\nDone <tool",
    ),
    ("llama3", llama3([("f", {"s": "日本語", "o": {"a": {"b": [{}]}}}), ("f", {})])),
    ("mistral", "Да." + mistral([("get-it", {"s": "\\ \n \u2028"}), ("f", {})])),
    ("pythonic", pythonic([("f", {"s": "it's 🌍", "o": {"x": [1, None, True]}}), ("get-it", {})])),
    (
        "qwen3_coder",
        '<tool_call>\n<function=f>\n<parameter=s>\nfür "x"\n\n</parameter>\n</function>\n</tool_call>',
    ),
    ("deepseekv3", deepseek3([("f", {"s": "```json"}), ("get-it", {})])),
    ("gpt-oss", gpt_oss([("f", {"s": "<|call|>"}), ("get-it", {})])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"s": "é\\u00e9", "n": 01}}</tool_call> rest'),
]


@cache
def smollm() -> Tokenizer:
    return load_tokenizer(str(fetch_embedded("smollm2-135m-instruct")))


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_cut_at_token_boundaries(name: str, text: str) -> None:
    """By a real vocabulary, which cuts characters into bytes: each token, and every cut into two."""
    ids = smollm().encode(text, add_special_tokens=False)
    expected = parse(name, [text])
    for groups in ([[each] for each in ids], *([ids[:k], ids[k:]] for k in range(1, len(ids)))):
        assert parse(name, list(detokenized(groups))) == expected


def detokenized(groups: list[list[int]]) -> Iterator[str]:
    detokenizer = IncrementalDetokenizer(smollm(), skip_special_tokens=False)
    yield from map(detokenizer.add, groups)
    yield detokenizer.flush()
