"""Libraries whose compilers run in a process that can end: xgrammar and outlines."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND, IM_END, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import GrammarError
from radixmesh.engine.grammar.grammar import GrammarSpec
from radixmesh.engine.grammar.registry import Library, load_library
from radixmesh.engine.grammar.service import GrammarService
from radixmesh.engine.text.tokenizer import load_tokenizer
from tests.engine.grammar.walk import allowed, vocabulary, walk

TOKENS = load_tokenizer(str(TOKENIZER))
BYTES = vocabulary(TOKENS, {IM_END, 256}, vocab_size=300)


@pytest.fixture(scope="module", params=["xgrammar", "outlines"])
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    made = load_library(EngineConfig.from_options(grammar_backend=request.param, grammar_timeout=5.0), BYTES)
    yield made
    made.close()


def test_regex(library: Library) -> None:
    pattern = "(yes|no)-[0-9]{2,4}[a-zäöü]?"
    grammar = library.compile(GrammarSpec("regex", pattern))
    for seed in range(10):
        text = walk(grammar.matcher(), BYTES, random.Random(seed))
        assert text is not None and re.fullmatch(pattern, text.decode())


def test_choices_and_what_is_forced(library: Library) -> None:
    choices = ["a.b", "a[c", "zwölf"]
    matcher = library.compile(GrammarSpec("choices", json.dumps(choices))).matcher()
    assert allowed(matcher, 300) == [ord("a"), ord("z")]
    assert matcher.forced() == []
    matcher.accept(ord("z"))
    assert matcher.forced() == []  # the mask was not asked for
    assert allowed(matcher, 300) == matcher.forced() == [ord("w")]
    for byte in "wölf".encode():
        matcher.accept(byte)
    assert allowed(matcher, 300) == [256, IM_END]  # each end, and none beyond the tokenizer


@pytest.mark.parametrize("kind", ["regex", "json_schema"])
def test_the_librarys_reason_is_told(library: Library, kind: Any) -> None:
    text = "(a" if kind == "regex" else '{"type": "string", "pattern": "(a"}'
    with pytest.raises(GrammarError) as error:
        library.compile(GrammarSpec(kind, text))
    assert len(str(error.value)) > 10
    assert library.compile(GrammarSpec("regex", "a"))  # the helper lives on


@pytest.mark.parametrize("pattern", ["^.*$", "^[^a]$", r"^\S+$"])
def test_patterns_that_would_need_escapes_are_refused(library: Library, pattern: str) -> None:
    with pytest.raises(GrammarError, match="cannot do the pattern"):
        library.compile(GrammarSpec("json_schema", json.dumps({"type": "string", "pattern": pattern})))


def test_what_explodes_ends_with_its_process() -> None:
    config = EngineConfig.from_options(grammar_backend="outlines", grammar_timeout=0.5)
    library = load_library(config, BYTES)
    with pytest.raises(GrammarError, match="longer than 0.5 s"):
        library.compile(GrammarSpec("regex", r"(\w{1,40}\s?){1,40}"))
    assert library.compile(GrammarSpec("regex", "a"))
    library.close()


def test_what_a_library_cannot_do_is_refused_by_name() -> None:
    config = EngineConfig.from_options(backend="fake", grammar_backend="outlines")
    service = GrammarService(config, FAKE_BACKEND.describe(config), lambda: TOKENS)
    with pytest.raises(
        GrammarError, match="outlines cannot do ebnf; accepted are choices, json_schema, regex"
    ):
        service.wait(service.compile(GrammarSpec("ebnf", 'root ::= "a"')))
    service.close()
