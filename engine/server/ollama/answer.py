"""A model's answer as Ollama tells it: pieces of a message, and at the end the counts and times."""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from ...outputs import RequestOutput
from ...request import FinishReason
from ...text.parser import Arguments, CallEnd, CallStart, Event, Reasoning, Text
from ..errors import GenerationError
from ..message import AnswerReader, Reading


class Answer:
    """One answer as it comes. Calls are told whole; one whose arguments broke off is text."""

    def __init__(self, reading: Reading) -> None:
        self._reader = AnswerReader(reading)
        self._calls = 0
        self._name: str | None = None  # of the call whose arguments are coming
        self._arguments = ""

    def add(self, text: str, last: bool) -> dict[str, Any]:
        """What more text brings of `content`, `thinking` and `tool_calls`; `last`: no more will come."""
        told: dict[str, Any] = {"content": ""}
        for name, value in self._pieces(self._reader.add(text, last), last):
            told[name] = told[name] + value if name in told else value
        return told

    def _pieces(self, events: Iterable[Event], last: bool) -> Iterator[tuple[str, Any]]:
        for event in events:
            match event:
                case CallStart(name=name):
                    yield from self._broken()
                    self._name = name
                case Arguments(text=text):
                    self._arguments += text
                case CallEnd():
                    yield "tool_calls", [self._call()]
                case Text(text=text):
                    yield from self._broken()
                    yield "content", text
                case Reasoning(text=text):
                    yield "thinking", text
        if last:
            yield from self._broken()

    def _broken(self) -> Iterator[tuple[str, str]]:
        if self._name is not None:
            yield "content", self._arguments
        self._name, self._arguments = None, ""

    def _call(self) -> dict[str, Any]:
        function = {"index": self._calls, "name": self._name, "arguments": json.loads(self._arguments)}
        self._name, self._arguments = None, ""
        self._calls += 1
        return {"id": self._reader.new_call_id(), "function": function}


class Timing:
    """When the parts of an answer came, from its making."""

    def __init__(self) -> None:
        self._started = self._first = time.perf_counter_ns()
        self._begun = False

    def saw(self, output: RequestOutput) -> None:
        """Note when the first token comes."""
        if not self._begun and output.new_token_ids:
            self._begun, self._first = True, time.perf_counter_ns()

    def last_words(self, output: RequestOutput) -> dict[str, Any]:
        """What the last line has beside the message; durations are in nanoseconds.

        Raises GenerationError for an answer that was aborted.
        """
        if output.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            raise GenerationError("the request was aborted")
        now = time.perf_counter_ns()
        return {
            "done": True,
            "done_reason": output.finish_reason.value,
            "total_duration": now - self._started,
            "load_duration": 0,  # the model is there
            "prompt_eval_count": output.num_prompt_tokens,
            "prompt_eval_duration": self._first - self._started,
            "eval_count": len(output.token_ids),
            "eval_duration": now - self._first,
        }
