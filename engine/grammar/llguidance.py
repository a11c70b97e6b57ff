"""Grammars by llguidance (https://github.com/guidance-ai/llguidance): Earley parsing over derivatives of
regular expressions. Its limits on every kind of work make it safe to compile in a thread."""

import json
import random
from collections.abc import Callable
from functools import partial

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark

from ..errors import GrammarError
from .grammar import GrammarKind, GrammarSpec, Mask
from .masks import ids_of, mask_of
from .structural_tag import read_structural_tag
from .vocabulary import Vocabulary

# Work in a step is bounded by what a step may wait for, a few dozen milliseconds; lexer states by memory.
_MAX_LEXER_STATES = 50_000
_TRIAL_TOKENS = 32


class LlguidanceLibrary:
    """Compiles all kinds of grammars."""

    kinds: frozenset[GrammarKind] = frozenset(
        {"json_object", "json_schema", "regex", "ebnf", "choices", "structural_tag"}
    )

    def __init__(self, vocabulary: Vocabulary, compact_json: bool) -> None:
        """`compact_json` allows no white space in JSON but inside strings."""
        self._tokenizer = _tokenizer(vocabulary)
        self._ends = mask_of(vocabulary.eos_ids, len(vocabulary))
        self._limits = llguidance.LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        self._sources: dict[GrammarKind, Callable[[str], str]] = {
            "json_object": lambda _: _json('{"type": "object"}', compact_json),
            "json_schema": partial(_json, compact=compact_json),
            "regex": llguidance.LLMatcher.grammar_from_regex,
            "ebnf": lambda text: llguidance.LLMatcher.grammar_from_lark(any_to_lark(text)),
            "choices": _choices,
            "structural_tag": _structural_tag,
        }

    def compile(self, spec: GrammarSpec) -> "LlguidanceGrammar":
        """Compile, and walk a few tokens at random to find out early what explodes. Raises GrammarError."""
        try:
            source = self._sources[spec.kind](spec.text)
        except GrammarError:
            raise
        except Exception as error:  # its converters are Python scripts that fail in many ways
            raise GrammarError(str(error)) from error
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        _check(matcher)
        _try_out(matcher.deep_copy(), self._ends)
        return LlguidanceGrammar(matcher)

    def close(self) -> None:
        """There is nothing to release."""


class LlguidanceGrammar:
    """A start from which each output's matcher is copied."""

    def __init__(self, start: llguidance.LLMatcher) -> None:
        self._start = start

    def matcher(self) -> "LlguidanceMatcher":
        return LlguidanceMatcher(self._start.deep_copy())


class LlguidanceMatcher:
    """Once no text may follow, its mask allows the tokens that end the output alone."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def fill_mask(self, mask: Mask) -> None:
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        _check(self._matcher)

    def accept(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            _check(self._matcher)

    def forced(self) -> list[int]:
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced


class _Words:
    """What llguidance asks of a tokenizer that it does not know."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        # it marks special tokens by 0xFF, a byte that is in no text
        self.tokens = [b"" if b"\xff" in token else token for token in vocabulary.tokens]
        self.special_token_ids = sorted(vocabulary.special_ids)
        self.eos_token_id = min(vocabulary.eos_ids)
        self.bos_token_id = None
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


def _tokenizer(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    words = llguidance.TokenizerWrapper(_Words(vocabulary))
    return llguidance.LLTokenizer(words, eos_token=sorted(vocabulary.eos_ids))


def _json(schema: str, compact: bool) -> str:
    source: str = llguidance.LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_flexible": not compact}
    )
    return source


def _choices(text: str) -> str:
    """One terminal, which has no limit of alternatives; a rule's is 2,000."""
    alternatives = " | ".join(json.dumps(each) for each in json.loads(text))
    source: str = llguidance.LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {alternatives}")
    return source


def _structural_tag(text: str) -> str:
    tags = [
        llguidance.StructTag(trigger=tag.trigger, begin=tag.begin, grammar=tag.schema, end=tag.end)
        for tag in read_structural_tag(text)
    ]
    source: str = llguidance.StructTag.to_grammar(tags, assume_special=False)
    return llguidance.LLMatcher.grammar_from_lark(source) if source.startswith("%") else source


def _check(matcher: llguidance.LLMatcher) -> None:
    """Raise GrammarError if the matcher has failed."""
    if matcher.is_error():
        raise GrammarError(matcher.get_error().split("\n<state>")[0])


def _try_out(matcher: llguidance.LLMatcher, ends: Mask) -> None:
    """Raise GrammarError for a grammar that nothing matches, or that exceeds a limit within a few tokens."""
    draw, mask = random.Random(0), np.empty_like(ends)
    for _ in range(_TRIAL_TOKENS):
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        _check(matcher)
        ids = ids_of(mask & ~ends)
        if not len(ids):
            return
        matcher.consume_token(int(draw.choice(ids)))
        _check(matcher)
