"""A model's answer as Anthropic's content blocks, whole or as the events of a stream."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ...outputs import RequestOutput
from ...request import FinishReason
from ...text.parser import Arguments, CallEnd, CallStart, Event, Reasoning, Text
from ..errors import GenerationError
from ..message import AnswerReader, Reading

_EMPTY = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}


class Answer:
    """One answer as it comes. Its blocks follow each other; the last is open until the next begins."""

    def __init__(self, reading: Reading) -> None:
        self._reader = AnswerReader(reading)
        self._blocks: list[dict[str, Any]] = []
        self._arguments: dict[int, str] = {}  # of the calls, by the block's number
        self._open: str | None = None  # the open block's type

    def add(self, text: str, last: bool) -> list[dict[str, Any]]:
        """The events of more text, without those that begin and end a message; `last`: no more will come."""
        events = list(self._events(self._reader.add(text, last)))
        return [*events, *self._close()] if last else events

    def _events(self, events: Iterable[Event]) -> Iterator[dict[str, Any]]:
        for event in events:
            match event:
                case Text(text=text):
                    yield from self._begin("text")
                    self._blocks[-1]["text"] += text
                    yield self._delta({"type": "text_delta", "text": text})
                case Reasoning(text=text):
                    yield from self._begin("thinking")
                    self._blocks[-1]["thinking"] += text
                    yield self._delta({"type": "thinking_delta", "thinking": text})
                case CallStart(name=name):
                    yield from self._close()
                    yield from self._begin("tool_use", id=self._reader.new_call_id(), name=name, input={})
                    self._arguments[len(self._blocks) - 1] = ""
                case Arguments(text=text):
                    self._arguments[len(self._blocks) - 1] += text
                    yield self._delta({"type": "input_json_delta", "partial_json": text})
                case CallEnd():
                    yield from self._close()

    def _begin(self, kind: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Open a block of `kind`, unless the open one is."""
        if self._open == kind:
            return
        yield from self._close()
        block = {"type": kind, **_EMPTY.get(kind, {}), **fields}
        self._open = kind
        self._blocks.append(block)
        yield {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block.copy()}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def content(self) -> list[dict[str, Any]]:
        """The blocks, once all has come. A call whose arguments broke off is the text that there is of it."""
        return [self._whole(index, block) for index, block in enumerate(self._blocks)]

    def _whole(self, index: int, block: dict[str, Any]) -> dict[str, Any]:
        if index not in self._arguments:
            return block
        try:
            return {**block, "input": json.loads(self._arguments[index])}
        except ValueError:
            return {"type": "text", "text": self._arguments[index]}

    def stop(self, output: RequestOutput, max_tokens: int) -> dict[str, Any]:
        """`stop_reason` and `stop_sequence`. Raises GenerationError for an answer that was aborted."""
        reason, matched = output.finish_reason, output.matched_stop
        if reason is FinishReason.LENGTH:
            full = len(output.token_ids) < max_tokens
            return _stop("model_context_window_exceeded" if full else "max_tokens")
        if reason is not FinishReason.STOP:
            raise GenerationError("the request was aborted")
        if isinstance(matched, str):
            return _stop("stop_sequence", matched)
        return _stop("tool_use" if self._reader.whole_calls else "end_turn")


def _stop(reason: str, sequence: str | None = None) -> dict[str, Any]:
    return {"stop_reason": reason, "stop_sequence": sequence}


def usage(output: RequestOutput) -> dict[str, int]:
    """Token counts so far; as Anthropic counts, input tokens are those that were not in the cache.

    All of a prompt is kept, at no price, so that nothing counts as the making of a cache entry.
    """
    return {
        "input_tokens": output.num_prompt_tokens - output.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": output.num_cached_tokens,
        "output_tokens": len(output.token_ids),
    }
