"""Calls of tools in free text: where the model begins one, it has to be whole, with arguments that fit."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from ..errors import GrammarError
from .grammar import Grammar, GrammarSpec, Mask, Matcher
from .marks import Mark, Words
from .masks import mask_of


@dataclass(frozen=True, slots=True)
class Tag:
    """One way to write a call: `head`, a value of `arguments`, `tail`."""

    head: bytes
    arguments: Grammar
    tail: list[int]


class CallsGrammar:
    """Any text; after `trigger` one of `tags`, and any text again."""

    def __init__(self, trigger: Mark, tags: list[Tag], words: Words) -> None:
        self.trigger, self.tags, self.words = trigger, tags, words

    def matcher(self) -> "CallsMatcher":
        return CallsMatcher(self)


def read_calls_grammar(
    text: str, words: Words, compile_schema: Callable[[GrammarSpec], Grammar]
) -> CallsGrammar:
    """The grammar of {"trigger", "tags": [{"head", "schema", "tail"}, ...]}. Raises GrammarError."""
    value = json.loads(text)
    tags, compiled = [], dict[str, Grammar]()
    for tag in value["tags"]:
        schema = json.dumps(tag["schema"], ensure_ascii=False)
        if schema not in compiled:
            compiled[schema] = compile_schema(GrammarSpec("json_schema", schema))
        tags.append(Tag(tag["head"].encode(), compiled[schema], words.spell(tag["tail"].encode())))
    return CallsGrammar(Mark(value["trigger"], words), tags, words)


class CallsMatcher:
    """In turn: free text up to a trigger, the head of a tag, its arguments, its tail."""

    def __init__(self, grammar: CallsGrammar) -> None:
        self._grammar, self._words = grammar, grammar.words
        self._at = 0  # in the trigger
        self._run: list[int] = []  # what has to come, whatever else
        self._head: bytes | None = None  # as far as it is written; None: in no head
        self._tag: Tag | None = None  # whose arguments are written
        self._arguments: Matcher | None = None
        self._mask: Mask = grammar.words.all  # of the arguments

    def fill_mask(self, mask: Mask) -> None:
        if self._run:
            mask[:] = mask_of(self._run[:1], len(self._words))
        elif self._arguments is not None:
            mask[:] = self._mask
        elif self._head is not None:
            mask[:] = mask_of(self._going_on(self._head), len(self._words))
        else:
            mask[:] = self._words.all
            self._grammar.trigger.forbid_crossing(self._at, mask)

    def accept(self, token_id: int) -> None:
        was_free = not self._run and self._head is None
        if self._run and token_id != self._run.pop(0):
            raise GrammarError(f"token {token_id} may not come next")
        if self._arguments is not None:
            self._arguments.accept(token_id)
            self._look()
        elif self._head is not None:
            self._head += self._words.bytes_of(token_id)
            if not self._run:
                self._choose(self._head)
        elif was_free:
            self._at = self._grammar.trigger.follow(self._at, token_id)
            if self._at == len(self._grammar.trigger.text):
                self._at, self._head = 0, b""
                self._choose(self._head)

    def forced(self) -> list[int]:
        if self._run or self._arguments is None:
            return list(self._run)
        ends = self._words.vocabulary.eos_ids
        return list(takewhile(lambda token: token not in ends, self._arguments.forced()))

    def _going_on(self, head: bytes) -> list[int]:
        return [
            index
            for tag in self._grammar.tags
            if tag.head.startswith(head)
            for index in self._words.beginning(tag.head[len(head) :])
        ]

    def _choose(self, head: bytes) -> None:
        """Begin the arguments once a head is whole; what all heads have next has to come."""
        fits = [tag for tag in self._grammar.tags if tag.head.startswith(head)]
        if not fits:
            raise GrammarError(f"a call begins with {head!r}")
        for tag in fits:
            if tag.head == head:
                self._head, self._tag, self._arguments = None, tag, tag.arguments.matcher()
                self._look()
                return
        self._run = self._words.spell(_shared([tag.head for tag in fits])[len(head) :])

    def _look(self) -> None:
        """See what may come of the arguments; where they may end, they do."""
        assert self._arguments is not None and self._tag is not None
        self._mask = np.zeros_like(self._words.all)
        self._arguments.fill_mask(self._mask)
        if (self._mask & self._words.ends).any():
            self._arguments, self._run = None, list(self._tag.tail)


def _shared(texts: list[bytes]) -> bytes:
    """What all texts begin with."""
    first, last = min(texts), max(texts)
    size = next((at for at, byte in enumerate(first) if last[at : at + 1] != bytes([byte])), len(first))
    return first[:size]
