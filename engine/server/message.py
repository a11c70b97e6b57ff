"""One choice's message, whole or as OpenAI's deltas, from the text as it comes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..request import FinishReason
from ..text.output_parser import OutputParser
from ..text.parser import Arguments, CallEnd, CallStart, Event, Reasoning, Source, Steps, Text
from ..text.reasoning.format import ReasoningFormat
from ..text.tools.format import ToolFormat, Tools


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one request are read."""

    tool_format: ToolFormat | None = None  # None: calls are text
    tools: Tools | None = None
    parallel: bool = True  # False: no call after the first is told
    reasoning: ReasoningFormat | None = None  # None: reasoning is text
    prompt_end: str = ""  # where reasoning may have begun
    stream_reasoning: bool = True

    def parser(self) -> OutputParser:
        """A parser for one choice."""

        def read_reasoning(source: Source) -> Steps[None]:
            assert self.reasoning is not None
            return self.reasoning.read(source, self.prompt_end)

        def read_calls(source: Source) -> Steps[None]:
            assert self.tool_format is not None
            return self.tool_format.read(source, self.tools or {})

        return OutputParser(
            read_reasoning if self.reasoning else None,
            read_calls if self.tool_format else None,
            self.stream_reasoning,
        )


class AnswerReader:
    """The text of one choice to events, as it comes."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._parser = reading.parser()
        self.whole_calls = 0

    def add(self, text: str, last: bool) -> list[Event]:
        """The events of more text; `last`: no more will come."""
        events = self._parser.add(text)
        return list(self._told([*events, *self._parser.end()] if last else events))

    def _told(self, events: Iterable[Event]) -> Iterable[Event]:
        for event in events:
            if isinstance(event, CallStart | Arguments | CallEnd):
                if self.whole_calls and not self._reading.parallel:
                    continue
                self.whole_calls += isinstance(event, CallEnd)
            yield event

    def new_call_id(self) -> str:
        """An id for a call, as the model's template would have it."""
        assert self._reading.tool_format is not None
        return self._reading.tool_format.new_id()


class Message:
    """The message of one choice."""

    def __init__(self, reading: Reading) -> None:
        self._reader = AnswerReader(reading)
        self._content = self._thoughts = ""
        self._calls: list[dict[str, Any]] = []

    def add(self, text: str, last: bool) -> list[dict[str, Any]]:
        """The deltas of more text, each with one field of the message; `last`: no more will come."""
        return list(self._deltas(self._reader.add(text, last)))

    def _deltas(self, events: Iterable[Event]) -> Iterable[dict[str, Any]]:
        for event in events:
            match event:
                case Text(text=text):
                    self._content += text
                    yield {"content": text}
                case Reasoning(text=text):
                    self._thoughts += text
                    yield {"reasoning_content": text}
                case CallStart(name=name):
                    yield _call_delta(len(self._calls), **self._begin(name))
                case Arguments(text=text):
                    self._calls[-1]["function"]["arguments"] += text
                    yield _call_delta(len(self._calls) - 1, function={"arguments": text})

    def _begin(self, name: str) -> dict[str, Any]:
        call = {"id": self._reader.new_call_id(), "type": "function"}
        self._calls.append({**call, "function": {"name": name, "arguments": ""}})
        return {**call, "function": {"name": name, "arguments": ""}}

    def finish_reason(self, reason: FinishReason | None) -> str | None:
        """The reason as OpenAI names it; None while the choice runs."""
        if reason is FinishReason.STOP and self._reader.whole_calls:
            return "tool_calls"
        return None if reason is None else reason.value

    def whole(self) -> dict[str, Any]:
        """The message, once its last text was added."""
        content = None if self._calls and not self._content else self._content
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._thoughts:
            message["reasoning_content"] = self._thoughts
        if self._calls:
            message["tool_calls"] = self._calls
        return message


def _call_delta(index: int, **fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **fields}]}
