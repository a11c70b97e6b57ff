"""Thinking before an answer: free but for its budget, told from the answer, and counted by brute force."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND, IM_END, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.grammar.constrain import constrain
from radixmesh.engine.grammar.grammar import GrammarSpec, Matcher, Thinking
from radixmesh.engine.grammar.marks import Mark, Words
from radixmesh.engine.grammar.service import GrammarService
from radixmesh.engine.grammar.vocabulary import Vocabulary
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.text.output_parser import OutputParser, join
from radixmesh.engine.text.parser import Reasoning, Text
from radixmesh.engine.text.reasoning.gpt_oss import GPT_OSS_REASONING
from radixmesh.engine.text.tokenizer import load_tokenizer
from tests.engine.grammar.walk import allowed, vocabulary

TOKENS = load_tokenizer(str(TOKENIZER))
BYTES = vocabulary(TOKENS, {IM_END})
BEGIN, END = "<think>", "</think>"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
JSON = GrammarSpec("json_schema", json.dumps(SCHEMA))


@pytest.fixture(scope="module", params=["llguidance", "xgrammar", "outlines"])
def service(request: pytest.FixtureRequest) -> Iterator[GrammarService]:
    config = EngineConfig(backend="fake", grammar_backend=request.param, grammar_timeout=100.0)
    made = GrammarService(config, FAKE_BACKEND.describe(config), lambda: TOKENS)
    yield made
    made.close()


def matcher_of(service: GrammarService, kind: str, text: str, thinking: Thinking, **params: Any) -> Matcher:
    spec = GrammarSpec(kind, text, thinking)  # type: ignore[arg-type]
    request = Request(
        "a",
        np.array([1], np.int32),
        SamplingParams(grammar=spec, **params),
        eos_token_ids=frozenset([IM_END]),
    )
    constrain(request, service.wait(service.compile(spec)))
    assert request.matcher is not None
    return request.matcher


def walk(matcher: Matcher, draw: random.Random, words: Vocabulary, most: int = 300) -> list[int]:
    """A random output up to its end, or `most` tokens. At times it sets about writing a mark, or a part of
    one, as long as it may, and takes what is forced at once."""
    output: list[int] = []
    meant: list[int] = []
    while len(output) < most and IM_END not in output:
        ids, forced = allowed(matcher, len(words)), matcher.forced()
        assert ids and (not forced or forced[:1] == ids)
        if not meant and draw.random() < 0.1:
            mark = draw.choice([BEGIN, END, END]).encode()
            meant = [words.tokens.index(bytes([byte])) for byte in mark]
            meant = meant[: draw.choice([len(meant), len(meant), draw.randrange(len(meant))])]
        closing = [index for index in ids if words.tokens[index] in (b'"', b"}") or index == IM_END]
        if forced and draw.random() < 0.5:
            took = forced
        elif meant and meant[0] in ids:
            took = [meant.pop(0)]
        else:
            took = [draw.choice(closing if closing and draw.random() < 0.5 else ids)]
        meant = meant if meant and len(took) == 1 else []
        for token in took:
            matcher.accept(token)
        output += took
    return output


def text_of(ids: list[int], words: Vocabulary = BYTES) -> bytes:
    return b"".join(words.tokens[index] for index in ids if index != IM_END)


def spent(ids: list[int], words: Vocabulary, begin: str) -> int | None:
    """Tokens of thinking before its end begins to be written, by looking at every beginning of the text;
    None if there is no thinking."""
    first = 0
    if begin:
        texts = [text_of(ids[:count], words).lstrip() for count in range(len(ids) + 1)]
        starts = [count for count, text in enumerate(texts) if text == begin.encode()]
        if not starts:
            return None
        first = starts[0]
    for count in range(first, len(ids) + 1):
        if text_of(ids[first:count], words).endswith(END.encode()):
            return count - first
    return len(ids) - first


@pytest.mark.parametrize("begin", ["", BEGIN])
@pytest.mark.parametrize("budget", [None, 0, 1, 7, 30, 1000])
def test_a_grammar_holds_after_thinking_alone(
    service: GrammarService, begin: str, budget: int | None
) -> None:
    thoughts = 0
    for seed in range(15):
        draw = random.Random(seed)
        matcher = matcher_of(service, "json_schema", JSON.text, Thinking(begin, END, "", budget))
        ids = walk(matcher, draw, BYTES)
        if ids[-1] != IM_END:
            assert budget != 0 or begin  # it thought, or wrote a number, until the end
            continue
        text, count = text_of(ids), spent(ids, BYTES, begin)
        if count is None:
            jsonschema.validate(json.loads(text), SCHEMA)
            continue
        thoughts += 1
        thinking, _, answer = text.partition(END.encode())
        jsonschema.validate(json.loads(answer), SCHEMA)
        assert ids.index(IM_END) == len(ids) - 1
        # the end itself is eight tokens, and may have been begun within the budget
        assert budget is None or count <= budget + len(END)
    assert thoughts > 3


@pytest.mark.parametrize("budget", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("begin", ["", BEGIN])
def test_who_never_ends_thinking_spends_the_budget_exactly(budget: int, begin: str) -> None:
    service = GrammarService(
        EngineConfig(backend="fake"), FAKE_BACKEND.describe(EngineConfig(backend="fake")), lambda: TOKENS
    )
    for kind, text in (("text", ""), ("regex", "(ab)+")):
        matcher = matcher_of(service, kind, text, Thinking(begin, END, "", budget))
        written = begin.encode() + b"a" * budget + END.encode()
        for at, byte in enumerate(written):
            ids = allowed(matcher, len(BYTES))
            assert BYTES.tokens.index(bytes([byte])) in ids
            is_forced = at >= len(begin) + budget
            assert (matcher.forced() != []) == is_forced, at
            assert len(ids) == 1 if is_forced else at < len(begin) or len(ids) > 200
            matcher.accept(BYTES.tokens.index(bytes([byte])))
        ids = allowed(matcher, len(BYTES))
        assert ids == ([BYTES.tokens.index(b"a")] if kind == "regex" else list(range(len(ids))))
    service.close()


def test_one_run_ends_thinking_and_begins_the_answer() -> None:
    config = EngineConfig(backend="fake")
    service = GrammarService(config, FAKE_BACKEND.describe(config), lambda: TOKENS)
    matcher = matcher_of(service, "choices", '["answer"]', Thinking("", END, "then ", 0))
    assert text_of(matcher.forced()) == b"</think>then answer"
    service.close()


def test_budgets_share_a_grammar_and_an_end_that_was_reached_needs_no_second() -> None:
    config = EngineConfig(backend="fake")
    service = GrammarService(config, FAKE_BACKEND.describe(config), lambda: TOKENS)
    specs = [GrammarSpec("regex", "ab", Thinking("", END, "", budget)) for budget in (None, 3, 20)]
    assert len({id(service.compile(spec)) for spec in specs}) == 1
    matcher = matcher_of(service, "regex", "ab", Thinking("", END, "", 20))
    for byte in b"so </think>":
        matcher.accept(BYTES.tokens.index(bytes([byte])))
    assert text_of(matcher.forced()) == b"ab"
    service.close()


def test_thinking_may_not_end_an_output_that_has_to_be_something(service: GrammarService) -> None:
    held = matcher_of(service, "regex", "ab", Thinking("", END))
    free = matcher_of(service, "text", "", Thinking("", END, "", 9))
    assert IM_END not in allowed(held, len(BYTES)) and IM_END in allowed(free, len(BYTES))


def test_what_may_be_thinking_or_an_answer_goes_on_as_both(service: GrammarService) -> None:
    """The grammar's own words begin as the mark does."""
    words = ["<thing>", "<think>", "<td"]
    grammar = "|".join(words[:1] + words[2:])
    for output in (*words, "<think>so</think><thing>", "<think></think><td"):
        matcher = matcher_of(service, "regex", grammar, Thinking(BEGIN, END))
        for byte in output.encode():
            token = BYTES.tokens.index(bytes([byte]))
            assert token in allowed(matcher, len(BYTES)), output
            matcher.accept(token)
        ends = IM_END in allowed(matcher, len(BYTES))
        assert ends == (re.fullmatch(f"(<think>.*</think>)?({grammar})", output) is not None), output
    matcher = matcher_of(service, "regex", grammar, Thinking(BEGIN, END))
    assert [BYTES.tokens[index] for index in allowed(matcher, len(BYTES))] == [b"<"]


def test_the_least_length_counts_thinking(service: GrammarService) -> None:
    matcher = matcher_of(service, "regex", "a+", Thinking("", END, "", 0), min_new_tokens=len(END) + 3)
    for byte in END.encode() + b"aaa":
        assert IM_END not in allowed(matcher, len(BYTES))
        matcher.accept(BYTES.tokens.index(bytes([byte])))
    assert IM_END in allowed(matcher, len(BYTES))


def test_tokens_over_an_end_are_not_allowed() -> None:
    """After the end something else begins, with a token of its own."""
    tokens = (b"<", b"/", b"think", b">", b">\n", b"ink>x", b"</think>", b"a</think>b", b"x", b"", b"</")
    words = Words(Vocabulary(tokens, frozenset(), frozenset([9]), lambda text: []))
    mark = Mark(END, words)
    for seen in ("", "<", "</", "</th", "</think", "a<", "</</th", "</think</think"):
        at = next(n for n in range(len(END) - 1, -1, -1) if seen.endswith(END[:n]))
        assert at == mark.follow(0, 9) + at  # no bytes, no way
        over = set()
        for index, token in enumerate(tokens):
            found = (seen.encode() + token).find(END.encode())
            if 0 <= found and found + len(END) < len(seen) + len(token):
                over.add(index)
        mask = words.all.copy()
        mark.forbid_crossing(at, mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(tokens)]
        assert set(np.flatnonzero(bits == 0).tolist()) == over, seen
    assert [tokens[index] for index in words.spell(END.encode())] == [b"</think>"]
    assert [tokens[index] for index in words.spell(b"</x>")] == [b"</", b"x", b">"]


def test_gpt_oss_answers_in_its_final_message(service: GrammarService) -> None:
    thinking = GPT_OSS_REASONING.thinking("<|start|>assistant")
    assert thinking is not None
    matcher = matcher_of(service, "regex", "ab", thinking)
    before = b"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final"
    for byte in before:
        assert IM_END not in allowed(matcher, len(BYTES))
        matcher.accept(byte)
    assert matcher.forced()[:11] == list(b"<|message|>")
    for byte in b"<|message|>ab":
        assert allowed(matcher, len(BYTES)) == [byte]
        matcher.accept(byte)
    assert allowed(matcher, len(BYTES)) == [IM_END]
    parser = OutputParser(lambda source: GPT_OSS_REASONING.read(source, "<|start|>assistant"), None)
    events = join([*parser.add(before.decode() + "<|message|>ab"), *parser.end()])
    assert events == [Reasoning("hm"), Text("ab")]
