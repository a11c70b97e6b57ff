"""`OutputParser`: a model's text to answer, reasoning and calls, as it comes."""

from collections.abc import Callable, Iterable

from .parser import Arguments, Event, Parser, Reasoning, Source, Steps, Text

Read = Callable[[Source], Steps[None]]


class OutputParser:
    """First reasoning is taken out of the text, then calls; None leaves them in.

    Joined, the deltas are the same however the text is cut. With `stream_reasoning` off, reasoning
    comes as one piece when it is at its end.
    """

    def __init__(self, reasoning: Read | None, calls: Read | None, stream_reasoning: bool = True) -> None:
        self._reasoning = Parser(reasoning) if reasoning else None
        self._calls = Parser(calls) if calls else None
        self._stream_reasoning = stream_reasoning
        self._thoughts = ""  # not told yet

    def add(self, text: str) -> list[Event]:
        """Events that are certain now and were not before, neighbours of one kind joined."""
        events = self._reasoning.add(text) if self._reasoning else [Text(text)] if text else []
        return join(self._take(events))

    def end(self) -> list[Event]:
        """The last events: no more text will come."""
        events = self._take(self._reasoning.end() if self._reasoning else [])
        return join([*events, *self._told_thoughts(), *(self._calls.end() if self._calls else [])])

    def _take(self, events: Iterable[Event]) -> list[Event]:
        taken: list[Event] = []
        for event in events:
            if isinstance(event, Reasoning) and not self._stream_reasoning:
                self._thoughts += event.text
                continue
            taken += self._told_thoughts()
            taken += self._calls.add(event.text) if self._calls and isinstance(event, Text) else [event]
        return taken

    def _told_thoughts(self) -> list[Event]:
        thoughts, self._thoughts = self._thoughts, ""
        return [Reasoning(thoughts)] if thoughts else []


def join(events: Iterable[Event]) -> list[Event]:
    """`events` with neighbouring pieces of one kind as one."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Text | Reasoning | Arguments) and isinstance(last, type(event)):
            joined[-1] = type(event)(last.text + event.text)
        else:
            joined.append(event)
    return joined
