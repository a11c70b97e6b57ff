"""The parser of everything that a model writes between marks: tool calls and reasoning.

A format is a generator over a `Source`, written as if all text were there: it yields events, and None
where it needs text that has not come. Where the text is cut therefore cannot change what comes out,
only how much of it is told at once.

What a format reads is not yet told: until `Source.tell`, raising `Malformed` takes it back, and it
comes out as the plain text that it is.
"""

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

_SPACE = re.compile(r"\s*")
_MOST = 4096  # characters taken at once: each time some are told, the rest is copied


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thought before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of the tool `name` begins; the pieces of its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the arguments, which joined are one JSON object."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The arguments are whole. A call that is cut short or breaks off has no end."""


Event = Text | Reasoning | CallStart | Arguments | CallEnd
T = TypeVar("T")
Steps = Generator[Event | None, None, T]  # None: more text is needed


class Malformed(Exception):
    """What comes is not what the format says."""


class Truncated(Malformed):
    """The text ended in the midst of it."""


class Source:
    """Text that arrives in pieces: `text` was not told yet, and of it `at` characters were read."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.told = 0  # characters that are gone for good
        self.ended = False  # no more will come

    def add(self, piece: str) -> None:
        self.text += piece

    def tell(self) -> str:
        """What was read. There is no way back before it."""
        said, self.text = self.text[: self.at], self.text[self.at :]
        self.told += self.at
        self.at = 0
        return said

    def need(self, count: int) -> Steps[None]:
        """Wait for `count` more characters. Raises Truncated when there are none."""
        while len(self.text) - self.at < count:
            if self.ended:
                raise Truncated
            yield None

    def run(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Read as far as `pattern`, which matches any number of characters of some kind, reaches."""
        while True:
            found = pattern.match(self.text, self.at)
            assert found is not None
            if found.end() < len(self.text) or self.ended:
                self.at = found.end()
                return found[0]
            yield None

    def space(self) -> Steps[None]:
        """Read whitespace, if there is any."""
        yield from self.run(_SPACE)

    def mark(self, mark: str) -> Steps[bool]:
        """Read `mark` if it comes next."""
        while True:
            rest = self.text[self.at : self.at + len(mark)]
            if rest == mark:
                self.at += len(mark)
                return True
            if self.ended or not mark.startswith(rest):
                return False
            yield None

    def expect(self, mark: str) -> Steps[None]:
        """Read whitespace and then `mark`. Raises Malformed, or Truncated, if it does not come next."""
        yield from self.space()
        if not (yield from self.mark(mark)):
            raise Truncated if mark.startswith(self.text[self.at :]) else Malformed

    def until(self, mark: str) -> Steps[str]:
        """Read up to `mark` and over it; the text before it. Raises Truncated when there is none."""
        looked = self.at
        while (found := self.text.find(mark, looked)) < 0:
            if self.ended:
                raise Truncated
            looked = max(self.at, len(self.text) - len(mark) + 1)
            yield None
        text, self.at = self.text[self.at : found], found + len(mark)
        return text


def tell_until(
    source: Source, marks: Sequence[str], event: Callable[[str], Event] = Text, strip: bool = True
) -> Steps[str | None]:
    """Tell text up to the first of `marks`; returns that mark, None if the text ended before.

    Nothing may have been read. The mark has been read and not told; with `strip` so has the
    whitespace before it, which is no part of the text.
    """
    pattern = re.compile("|".join(map(re.escape, marks)))
    while True:
        found = pattern.search(source.text)
        end = found.start() if found else len(source.text)
        if not found and not source.ended:
            end -= _beginning(source.text, marks)
        if strip and (found or not source.ended):
            end = len(source.text[:end].rstrip())
        if end:
            source.at = end
            yield event(source.tell())
        if found:
            source.at = found.end() - end
            return found[0]
        if source.ended:
            return None
        yield None


def tell_rest(source: Source) -> Steps[None]:
    """Tell all that comes as text."""
    while True:
        source.at = len(source.text)
        if source.at:
            yield Text(source.tell())
        if source.ended:
            return
        yield None


def _beginning(text: str, marks: Sequence[str]) -> int:
    """The most characters at the end of `text` that may be the beginning of a mark."""
    longest = min(len(text), max(map(len, marks)) - 1)
    fits = (n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in marks))
    return next(fits, 0)


class Parser:
    """Runs a format over text that arrives in pieces."""

    def __init__(self, read: Callable[[Source], Steps[None]]) -> None:
        self._source = Source()
        self._steps = read(self._source)

    def add(self, text: str) -> list[Event]:
        """Events that are certain now and were not before."""
        events = []
        for start in range(0, len(text), _MOST):
            self._source.add(text[start : start + _MOST])
            events += self._take()
        return events

    def end(self) -> list[Event]:
        """The last events: no more text will come."""
        self._source.ended = True
        return self._take()

    def _take(self) -> list[Event]:
        events = []
        for step in self._steps:
            if step is None:
                break
            events.append(step)
        return events
