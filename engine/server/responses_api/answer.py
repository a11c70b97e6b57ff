"""A response as it comes: its output items, and the events that tell of them."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from ...outputs import RequestOutput
from ...request import FinishReason
from ...text.parser import Arguments, CallEnd, CallStart, Event, Reasoning, Text
from ..errors import describe
from ..message import AnswerReader, Reading
from .protocol import ResponseBody

Item = dict[str, Any]

_CANCELLED = "response.incomplete"  # OpenAI's events have none of their own for it


class Answer:
    """One response: the object that clients get, whole at any time, and its events.

    `response` is what GET returns; `add` takes in what the engine brought.
    """

    def __init__(self, id: str, body: ResponseBody, model: str) -> None:
        self.response = _begin(id, body, model)
        self._events = 0
        self._open = False  # whether the last item may still grow
        self._reader: AnswerReader | None = None
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text did not come yet
        self._reasoning_tokens = 0

    @property
    def _items(self) -> list[Item]:
        items: list[Item] = self.response["output"]
        return items

    def start(self, reading: Reading) -> list[dict[str, Any]]:
        """The model begins to write, and is read so: the first events."""
        self._reader = AnswerReader(reading)
        self.response["status"] = "in_progress"
        return [self.told("response.created"), self.told("response.in_progress")]

    def add(self, output: RequestOutput, logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The events of more output; `logprobs` are those of its new tokens, if they are asked for."""
        assert self._reader is not None, "start comes first"
        self._logprobs += logprobs
        last = output.finish_reason is not None
        events: list[dict[str, Any]] = []
        for each in self._reader.add(output.text_delta, last):
            events += self._take(each)
        if self._items and self._items[-1]["type"] == "reasoning":
            self._reasoning_tokens += len(output.new_token_ids)
        if last:
            events += self._finish(output)
        return events

    def fail(self, error: BaseException) -> dict[str, Any]:
        """The event of an error that ends the response."""
        fault = describe(error)
        self.response |= {
            "status": "failed",
            "error": {"code": fault.code or "server_error", "message": fault.message},
        }
        return self.told("response.failed")

    def end_early(self) -> list[dict[str, Any]]:
        """Nothing more will come: what is not finished was cancelled. The events that tell so."""
        if self.response["status"] not in ("queued", "in_progress"):
            return []
        events = list(self._close("incomplete"))
        self.response["status"] = "cancelled"
        return [*events, self.told(_CANCELLED)]

    def told(self, kind: str) -> dict[str, Any]:
        """An event with the response as it is now."""
        items = [{**item} for item in self._items]
        return self._event(kind, response={**self.response, "output": items})

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._events += 1
        return {"type": kind, "sequence_number": self._events - 1, **fields}

    def _of_item(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An event of the last item."""
        index = len(self._items) - 1
        return self._event(f"response.{kind}", item_id=self._items[index]["id"], output_index=index, **fields)

    def _take(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case Text(text=text):
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield from self._go_on("message", part, {"role": "assistant"})
                content = self._items[-1]["content"][0]
                content["text"] += text
                content["logprobs"] = content["logprobs"] + self._logprobs
                told = {"content_index": 0, "delta": text, "logprobs": self._logprobs}
                yield self._of_item("output_text.delta", **told)
            case Reasoning(text=text):
                yield from self._go_on("reasoning", {"type": "reasoning_text", "text": ""}, {"summary": []})
                self._items[-1]["content"][0]["text"] += text
                yield self._of_item("reasoning_text.delta", content_index=0, delta=text)
            case CallStart(name=name):
                assert self._reader is not None
                fields = {"call_id": self._reader.new_call_id(), "name": name, "arguments": ""}
                yield from self._close("completed")
                yield self._begin("function_call", fields)
            case Arguments(text=text):
                self._items[-1]["arguments"] += text
                yield self._of_item("function_call_arguments.delta", delta=text)
            case CallEnd():
                yield from self._close("completed")
        self._logprobs = []

    def _begin(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        item = {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **fields}
        self._items.append(item)
        self._open = True
        told = {name: list(value) if name == "content" else value for name, value in item.items()}
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=told)

    def _go_on(self, kind: str, part: dict[str, Any], fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Make the last item one of `kind`, with `part` as its content."""
        if self._open and self._items[-1]["type"] == kind:
            return
        yield from self._close("completed")
        yield self._begin(kind, {**fields, "content": []})
        self._items[-1]["content"].append(part)
        yield self._of_item("content_part.added", content_index=0, part={**part})

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        """No more of the last item will come."""
        if not self._open:
            return
        self._open = False
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._of_item("function_call_arguments.done", **told)
        else:
            part, place = item["content"][0], {"content_index": 0}
            if item["type"] == "message":
                texts = {"text": part["text"], "logprobs": part["logprobs"]}
                yield self._of_item("output_text.done", **place, **texts)
            else:
                yield self._of_item("reasoning_text.done", **place, text=part["text"])
            yield self._of_item("content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _finish(self, output: RequestOutput) -> Iterator[dict[str, Any]]:
        status = {FinishReason.LENGTH: "incomplete", FinishReason.ABORT: "cancelled"}.get(
            output.finish_reason or FinishReason.STOP, "completed"
        )
        if not self._items:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield from self._go_on("message", part, {"role": "assistant"})
        yield from self._close("completed" if status == "completed" else "incomplete")
        self.response |= {
            "status": status,
            "completed_at": time.time() if status == "completed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "usage": _usage(output, self._reasoning_tokens),
        }
        yield self.told("response.completed" if status == "completed" else _CANCELLED)


def _begin(id: str, body: ResponseBody, model: str) -> dict[str, Any]:
    """The response before anything came: what was asked, and what is not known yet."""
    return {
        "id": id,
        "object": "response",
        "created_at": time.time(),
        "completed_at": None,
        "status": "queued",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "background": body.background,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
        "store": body.store,
        "temperature": body.temperature,
        "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [_tool(each) for each in body.tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
    }


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    return {"strict": False, **{name: value for name, value in given.items() if value is not None}}


def _usage(output: RequestOutput, reasoning_tokens: int) -> dict[str, Any]:
    count = len(output.token_ids)
    return {
        "input_tokens": output.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": output.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": output.num_prompt_tokens + count,
    }
