"""Calls of strict tools in free text: random walks whose every call fits, in each format that can do it."""

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND, IM_END, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import GrammarError
from radixmesh.engine.grammar.calls import read_calls_grammar
from radixmesh.engine.grammar.given import spec_of
from radixmesh.engine.grammar.grammar import GrammarSpec, Matcher, Thinking
from radixmesh.engine.grammar.llguidance import LlguidanceLibrary
from radixmesh.engine.grammar.marks import Words
from radixmesh.engine.grammar.service import GrammarService
from radixmesh.engine.grammar.vocabulary import Vocabulary
from radixmesh.engine.text.output_parser import OutputParser
from radixmesh.engine.text.parser import Arguments, CallEnd, CallStart, Text
from radixmesh.engine.text.tokenizer import load_tokenizer
from radixmesh.engine.text.tools.deepseek import DEEPSEEK
from radixmesh.engine.text.tools.format import ToolFormat
from radixmesh.engine.text.tools.hermes import HERMES
from radixmesh.engine.text.tools.mistral import MISTRAL
from radixmesh.engine.text.tools.strict import calls_text
from tests.engine.grammar.walk import allowed, vocabulary

TOKENS = load_tokenizer(str(TOKENIZER))
BYTES = vocabulary(TOKENS, {IM_END})
TOOLS: dict[str, Any] = {
    "no": {"properties": {"why": {"const": "no"}}, "additionalProperties": False},
    "now_in": {
        "type": "object",
        "properties": {
            "zone": {"enum": ["CET", "UTC"]},
            "hours": {"type": "array", "items": {"$ref": "#/$defs/h"}},
        },
        "required": ["zone", "hours"],
        "additionalProperties": False,
        "$defs": {"h": {"enum": [1, 22]}},
    },
    "loose": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}
STRICT = {"no", "now_in"}
FITS = {
    "no": TOOLS["no"],
    "now_in": TOOLS["now_in"],
    "loose": {"type": "object"},
}


@pytest.fixture(scope="module", params=["llguidance", "xgrammar", "outlines"])
def service(request: pytest.FixtureRequest) -> Iterator[GrammarService]:
    config = EngineConfig(
        backend="fake",
        grammar_backend=request.param,
        grammar_timeout=100.0,
        constrained_json_disable_any_whitespace=True,
    )
    made = GrammarService(config, FAKE_BACKEND.describe(config), lambda: TOKENS)
    yield made
    made.close()


def spec(format: ToolFormat, tools: dict[str, Any] = TOOLS) -> GrammarSpec:
    assert format.tags is not None
    return spec_of("calls", calls_text(format.tags, tools, STRICT))


def walk(matcher: Matcher, draw: random.Random, words: Vocabulary, mark: bytes, most: int = 400) -> list[int]:
    """Random bytes, in which at times a call is begun, or a part of its mark; what is open is closed soon."""
    output: list[int] = []
    meant: list[int] = []
    while len(output) < most and IM_END not in output:
        ids, forced = allowed(matcher, len(words)), matcher.forced()
        assert ids and (not forced or forced[:1] == ids)
        if not meant and draw.random() < 0.1:
            meant = [words.tokens.index(bytes([byte])) for byte in mark[: draw.choice([99, 99, 3])]]
        closing = [index for index in ids if words.tokens[index] in (b'"', b"}", b"]")]
        if forced and draw.random() < 0.5:
            took = forced
        elif meant and meant[0] in ids:
            took = [meant.pop(0)]
        else:
            took = [draw.choice(closing if len(ids) < 200 and closing and draw.random() < 0.6 else ids)]
            meant = []
        for token in took:
            matcher.accept(token)
        output += took
    return output


def read(
    format: ToolFormat, text: str, tools: dict[str, Any] = TOOLS
) -> tuple[list[tuple[str, str, bool]], str]:
    """Each call's name, arguments and whether it is whole; and the text around them."""
    parser = OutputParser(None, lambda source: format.read(source, TOOLS))
    calls: list[tuple[str, str, bool]] = []
    rest = ""
    for event in [*parser.add(text), *parser.end()]:
        match event:
            case CallStart(name=name):
                calls.append((name, "", False))
            case Arguments(text=piece):
                calls[-1] = (calls[-1][0], calls[-1][1] + piece, False)
            case CallEnd():
                calls[-1] = (*calls[-1][:2], True)
            case Text(text=piece):
                rest += piece
    return calls, rest


@pytest.mark.parametrize("format", [HERMES, MISTRAL, DEEPSEEK], ids=lambda each: each.name)
def test_every_call_fits(service: GrammarService, format: ToolFormat) -> None:
    assert format.tags is not None
    trigger = format.tags.trigger
    grammar = service.wait(service.compile(spec(format)))
    whole, names = 0, set[str]()
    for seed in range(12):
        ids = walk(grammar.matcher(), random.Random(seed), BYTES, trigger.encode())
        text = b"".join(BYTES.tokens[index] for index in ids if index != IM_END).decode(errors="replace")
        calls, rest = read(format, text)
        begun = text.count(trigger) - sum(arguments.count(trigger) for _, arguments, _ in calls)
        ended = [each for each in calls if each[2]]
        # all but the last, which may be cut, is a call; nothing that was begun has become text
        assert begun - 1 <= len(ended) <= begun and rest.count(trigger) <= begun - len(ended)
        for name, arguments, _ in ended:
            jsonschema.validate(json.loads(arguments), FITS[name])
        if ids[-1] == IM_END:
            assert len(ended) == begun
        whole, names = whole + len(ended), names | {name for name, *_ in ended}
    assert whole > 10 and len(names) == 3


@pytest.mark.parametrize("format", [HERMES, MISTRAL, DEEPSEEK], ids=lambda each: each.name)
def test_text_without_a_call_is_free(service: GrammarService, format: ToolFormat) -> None:
    assert format.tags is not None
    matcher = service.wait(service.compile(spec(format))).matcher()
    for byte in b'a {"name": "now", "arguments": 3} <tool_cal [TOOL_CALL \xef\xbd\x9c \x00':
        assert {IM_END, *range(256)} <= set(allowed(matcher, len(BYTES))) and matcher.forced() == []
        matcher.accept(byte)


def test_what_is_the_same_for_all_calls_comes_in_one_run(service: GrammarService) -> None:
    one = {"now_in": TOOLS["now_in"]}
    matcher = service.wait(service.compile(spec(HERMES, one))).matcher()
    for byte in b"Well.<tool_call>":
        matcher.accept(byte)
    assert bytes(matcher.forced()) == b'\n{"name": "now_in", "arguments": '
    for byte in b'\n{"name": "now_in", "arguments": {"zone":"UTC","hours":[22]}':
        assert byte in allowed(matcher, len(BYTES))
        matcher.accept(byte)
    assert bytes(matcher.forced()) == b"}\n</tool_call>"
    for byte in b"}\n</tool_call>":
        matcher.accept(byte)
    assert len(allowed(matcher, len(BYTES))) >= 257
    several = service.wait(service.compile(spec(HERMES))).matcher()
    for byte in b"<tool_call>":
        several.accept(byte)
    assert bytes(several.forced()) == b'\n{"name": "'
    for byte in b'\n{"name": "':
        several.accept(byte)
    assert sorted(allowed(several, len(BYTES))) == sorted(b"nl")


def test_calls_in_thoughts_are_thoughts(service: GrammarService) -> None:
    thinking = Thinking("", "</think>")
    held = spec(HERMES)
    grammar = service.wait(service.compile(GrammarSpec(held.kind, held.text, thinking)))
    matcher = grammar.matcher()
    for byte in b"<tool_call>x</think>":
        assert {IM_END, *range(256)} <= set(allowed(matcher, len(BYTES)))
        matcher.accept(byte)
    for byte in b"<tool_call>":
        matcher.accept(byte)
    assert allowed(matcher, len(BYTES)) == [ord("\n")]


def test_marks_that_are_special_tokens() -> None:
    """Mistral's, which no library would let through."""
    words = [*(bytes([index]) for index in range(256)), b"[TOOL_CALLS]", b"[ARGS]", b"</s>"]
    vocabulary_ = Vocabulary(tuple(words), frozenset([256, 257, 258]), frozenset([258]), spelled)
    library = LlguidanceLibrary(vocabulary_, compact_json=True)
    grammar = read_calls_grammar(spec(MISTRAL).text, Words(vocabulary_), library.compile)
    matcher = grammar.matcher()
    for token in (*b"Hm. ", 256, *b"no"):
        assert token in allowed(matcher, len(words))
        matcher.accept(token)
    assert set(allowed(matcher, len(words))) == {257, ord("["), ord("w")}
    for token in (257, *b"{}"):
        assert token in allowed(matcher, len(words))
        matcher.accept(token)
    assert len(allowed(matcher, len(words))) == len(words)


def spelled(text: str) -> list[int]:
    return list(text.encode())


def test_a_schema_that_is_refused_says_why(service: GrammarService) -> None:
    bad = spec(HERMES, {"no": {"type": "object", "properties": {"a": {"type": "objekt"}}}})
    with pytest.raises(GrammarError, match="calls is refused"):
        service.wait(service.compile(bad))


def test_masks_are_whole_words() -> None:
    grammar = read_calls_grammar(spec(HERMES).text, Words(BYTES), LlguidanceLibrary(BYTES, True).compile)
    mask = np.zeros(-(-len(BYTES) // 32), np.uint32)
    grammar.matcher().fill_mask(mask)
    assert mask.tolist() == [0xFFFFFFFF] * 8 + [(1 << len(BYTES) - 256) - 1]
