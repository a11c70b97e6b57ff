"""Masks against brute force: all words of a small language, and which of them begin as the output does."""

import itertools
import re
from collections.abc import Iterator

import pytest

from radixmesh.backends.fake.backend import IM_END, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.grammar.grammar import GrammarSpec, Matcher
from radixmesh.engine.grammar.registry import Library, load_library
from radixmesh.engine.text.tokenizer import load_tokenizer
from tests.engine.grammar.walk import allowed, vocabulary

BYTES = vocabulary(load_tokenizer(str(TOKENIZER)), {IM_END})
IDS = {token: index for index, token in enumerate(BYTES.tokens) if len(token) == 1}
LONGEST = 6  # letters of a word of the languages below


@pytest.fixture(scope="module", params=["llguidance", "xgrammar"])
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    made = load_library(EngineConfig.from_options(grammar_backend=request.param), BYTES)
    yield made
    made.close()


@pytest.mark.parametrize(
    "pattern", ["a(b|c)?", "(ab|ba){1,2}c", "[ab]{2,4}", "a?b?c?", "(a|ab)(c|bcd?)", "((a|bb)c){0,2}"]
)
def test_what_may_come_next_is_what_some_word_has_next(library: Library, pattern: str) -> None:
    texts = ("".join(each) for size in range(LONGEST + 1) for each in itertools.product("abcd", repeat=size))
    words = [text for text in texts if re.fullmatch(pattern, text)]
    grammar = library.compile(GrammarSpec("regex", pattern))
    for text in sorted({word[:size] for word in words for size in range(len(word) + 1)}):
        ids = allowed(after(grammar.matcher(), text), len(BYTES))
        found = {"" if index == IM_END else BYTES.tokens[index].decode() for index in ids}
        assert found == {word[len(text) : len(text) + 1] for word in words if word.startswith(text)}, text


def test_outlines_loses_ways_on_from_where_a_word_may_end() -> None:
    """A fault of outlines-core 0.2 that docs/structured-output.md tells of. Once this fails it is mended:
    then outlines belongs to the libraries above, and the sentence goes."""
    library = load_library(EngineConfig(grammar_backend="outlines"), BYTES)
    matcher = library.compile(GrammarSpec("regex", "b(ac)?")).matcher()
    assert allowed(after(matcher, "b"), len(BYTES)) == [IM_END]
    library.close()


def after(matcher: Matcher, text: str) -> Matcher:
    for char in text:
        matcher.accept(IDS[char.encode()])
    return matcher
