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


class Message:
    """The message of one choice."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._parser = reading.parser()
        self._content = self._thoughts = ""
        self._calls: list[dict[str, Any]] = []
        self._whole_calls = 0

    def add(self, text: str, last: bool) -> list[dict[str, Any]]:
        """The deltas of more text, each with one field of the message; `last`: no more will come."""
        events = self._parser.add(text)
        return list(self._deltas([*events, *self._parser.end()] if last else events))

    def _deltas(self, events: Iterable[Event]) -> Iterable[dict[str, Any]]:
        for event in events:
            match event:
                case Text(text=text):
                    self._content += text
                    yield {"content": text}
                case Reasoning(text=text):
                    self._thoughts += text
                    yield {"reasoning_content": text}
                case _ if self._whole_calls and not self._reading.parallel:
                    continue
                case CallStart(name=name):
                    yield _call_delta(len(self._calls), **self._begin(name))
                case Arguments(text=text):
                    self._calls[-1]["function"]["arguments"] += text
                    yield _call_delta(len(self._calls) - 1, function={"arguments": text})
                case CallEnd():
                    self._whole_calls += 1

    def _begin(self, name: str) -> dict[str, Any]:
        assert self._reading.tool_format is not None
        call = {"id": self._reading.tool_format.new_id(), "type": "function"}
        self._calls.append({**call, "function": {"name": name, "arguments": ""}})
        return {**call, "function": {"name": name, "arguments": ""}}

    def finish_reason(self, reason: FinishReason | None) -> str | None:
        """The reason as OpenAI names it; None while the choice runs."""
        if reason is FinishReason.STOP and self._whole_calls:
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
