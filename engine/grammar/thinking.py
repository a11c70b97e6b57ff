"""What an output thinks before its answer: free, but for its length, whatever the answer is held to."""

from dataclasses import replace

import numpy as np

from ..errors import GrammarError
from .grammar import Grammar, Mask, Matcher, Thinking
from .marks import Mark, Words
from .masks import allows, mask_of


class AnyText:
    """The grammar of everything, and a matcher of it: an output is free."""

    def matcher(self) -> "AnyText":
        return self

    def fill_mask(self, mask: Mask) -> None:
        mask[:] = 0xFFFFFFFF

    def accept(self, token_id: int) -> None:
        """Nothing follows from it."""

    def forced(self) -> list[int]:
        return []


class ThinkingMarks:
    """The marks of one way to think, in one vocabulary."""

    def __init__(self, thinking: Thinking, words: Words) -> None:
        """Raises GrammarError if the tokens cannot write the end."""
        self.words = words
        self.begin = Mark(thinking.begin, words) if thinking.begin else None
        self.end = Mark(thinking.end, words)
        self.then = words.spell(thinking.then.encode())
        self.closing = words.spell(self.end.text) + self.then
        self.free = words.all & ~words.ends  # all tokens but those that end an output


class ThinkingGrammar:
    """Thinking, then an answer of another grammar."""

    def __init__(self, marks: ThinkingMarks, answer: Grammar, may_end: bool) -> None:
        """`may_end`: the output may end without an answer."""
        self._marks, self._answer, self._may_end = marks, answer, may_end

    def matcher(self, budget: int | None = None) -> "ThinkingMatcher":
        """`budget` is of tokens; None is no bound."""
        return ThinkingMatcher(self._marks, self._answer, budget, self._may_end)


class ThinkingMatcher:
    """Where thinking need not begin, what comes first may be its mark or the answer: both go on until it
    shows."""

    def __init__(self, marks: ThinkingMarks, answer: Grammar, budget: int | None, may_end: bool) -> None:
        self._marks, self._grammar, self._left = marks, answer, budget
        self._thoughts = marks.words.all if may_end else marks.free
        self._seen: bytes | None = None if marks.begin is None else b""  # of the beginning; None: it is past
        self._closing: list[int] = []  # what has to come of the end
        self._at = 0  # in the end
        self._answer: Matcher | None = None if marks.begin is None else answer.matcher()
        self._spend(0)

    def fill_mask(self, mask: Mask) -> None:
        if self._seen is not None:
            self._fill_beginning(mask)
        elif self._answer is not None:
            self._answer.fill_mask(mask)
        elif self._closing:
            mask[:] = mask_of(self._closing[:1], len(self._marks.words))
        else:
            mask[:] = self._thoughts
            self._marks.end.forbid_crossing(self._at, mask)

    def accept(self, token_id: int) -> None:
        if self._seen is not None:
            self._accept_beginning(self._seen, token_id)
        elif self._answer is not None:
            self._answer.accept(token_id)
        elif self._closing:
            if token_id != self._closing.pop(0):
                raise GrammarError(f"token {token_id} may not come next")
            self._end()
        else:
            self._at = self._marks.end.follow(self._at, token_id)
            if self._at == len(self._marks.end.text):
                self._closing = list(self._marks.then)
                self._end()
            else:
                self._spend(1)

    def forced(self) -> list[int]:
        if self._seen is not None:
            return []
        if self._answer is not None:
            return self._answer.forced()
        return [*self._closing, *self._grammar.matcher().forced()] if self._closing else []

    def _end(self) -> None:
        """The answer begins, unless more has to come before it."""
        if not self._closing:
            self._answer = self._grammar.matcher()

    def _spend(self, count: int) -> None:
        """Take thinking's tokens from what is left of them."""
        if self._left is not None and self._seen is None:
            self._left -= count
            if self._left <= 0:
                self._closing = list(self._marks.closing)

    def _fill_beginning(self, mask: Mask) -> None:
        assert self._marks.begin is not None and self._seen is not None
        if self._answer is None:
            mask[:] = 0
        else:
            self._answer.fill_mask(mask)
        rest = self._marks.begin.text[len(self._seen) :]
        mask |= mask_of(self._marks.words.beginning(rest), len(self._marks.words))
        self._marks.begin.forbid_crossing(len(self._seen), mask)

    def _accept_beginning(self, seen: bytes, token_id: int) -> None:
        assert self._marks.begin is not None
        seen = (seen + self._marks.words.bytes_of(token_id)).lstrip()
        if seen == self._marks.begin.text:
            self._seen = self._answer = None
            self._spend(0)
            return
        self._seen = seen if self._marks.begin.text.startswith(seen) else None
        if self._answer is not None and self._seen is not None:
            mask = np.zeros_like(self._marks.free)
            self._answer.fill_mask(mask)
            if not allows(mask, token_id):
                self._answer = None
        if self._answer is not None:
            self._answer.accept(token_id)
        elif self._seen is None:
            raise GrammarError(f"token {token_id} may not come next")


def without_budget(thinking: Thinking) -> Thinking:
    """What `ThinkingMarks` are made of: budgets differ from request to request."""
    return replace(thinking, budget=None)
