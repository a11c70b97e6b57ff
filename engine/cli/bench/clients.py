"""How each kind of server is asked, and what its stream says: one function per protocol.

Each sends one prompt and fills a `RequestRecord`: arrivals, token counts and the answer.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ...errors import ConfigError
from .datasets import Content, Turn
from .http_client import HttpError, stream_events
from .report import RequestRecord

Protocol = Literal["openai", "openai-chat", "sglang"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server, and what every request to it carries."""

    base_url: str
    protocol: Protocol
    model: str
    ignore_eos: bool = False
    temperature: float = 0.0
    api_key: str | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)


async def send(target: Target, turn: Turn) -> RequestRecord:
    """Send one prompt and read the stream to its end. A failure is in the record, not raised."""
    record = RequestRecord(start=time.perf_counter())
    try:
        await _SENDERS[target.protocol](target, turn, record)
    except (HttpError, ValueError, KeyError, TypeError) as error:
        record.error = str(error) if isinstance(error, HttpError) else f"the stream has no {error}"
    record.end = record.arrivals[-1] if record.arrivals else time.perf_counter()
    return record


def as_history(target: Target, prompt: Content, record: RequestRecord) -> Content:
    """The prompt with its answer, as the protocol wants it in front of the next turn."""
    if target.protocol == "openai-chat":
        return [*as_messages(prompt), {"role": "assistant", "content": record.text}]
    if isinstance(prompt, str):
        return prompt + record.text
    return [*prompt, *record.token_ids]


def as_messages(content: Content) -> list[Any]:
    """Chat messages; plain text becomes one of the user."""
    return [{"role": "user", "content": content}] if isinstance(content, str) else content


async def _completions(target: Target, turn: Turn, record: RequestRecord) -> None:
    body = {"prompt": turn.content, **_openai_body(target, turn)}
    async for event in stream_events(f"{target.base_url}/v1/completions", body, target.api_key):
        _note_openai(record, event, lambda choice: choice.get("text"))


async def _chat(target: Target, turn: Turn, record: RequestRecord) -> None:
    body = {"messages": as_messages(turn.content), **_openai_body(target, turn)}
    async for event in stream_events(f"{target.base_url}/v1/chat/completions", body, target.api_key):
        _note_openai(record, event, _chat_text)


async def _generate(target: Target, turn: Turn, record: RequestRecord) -> None:
    """SGLang's own route: every event has the text, and the token count, so far."""
    sampling = {
        "max_new_tokens": turn.output_len,
        "temperature": target.temperature,
        "ignore_eos": target.ignore_eos,
    }
    prompt = {"text": turn.content} if isinstance(turn.content, str) else {"input_ids": turn.content}
    body = {**prompt, "sampling_params": sampling, "stream": True, **target.extra_body}
    async for event in stream_events(f"{target.base_url}/generate", body, target.api_key):
        if "error" in event:
            raise HttpError(_message(event["error"]))
        meta = event["meta_info"]
        if new := meta["completion_tokens"] - record.output_tokens:
            record.arrivals.append(time.perf_counter())
            record.arrived_tokens.append(new)
        record.prompt_tokens = meta["prompt_tokens"]
        record.cached_tokens = meta.get("cached_tokens", 0)
        record.text = event.get("text") or ""
        ids = event.get("output_ids") or []  # all so far, or the new ones: servers differ
        record.token_ids = ids if len(ids) == record.output_tokens else record.token_ids + ids
        if (meta.get("finish_reason") or {}).get("type") in ("abort", "error"):
            raise HttpError(_message(meta["finish_reason"]))


_SENDERS: dict[str, Callable[[Target, Turn, RequestRecord], Awaitable[None]]] = {
    "openai": _completions,
    "openai-chat": _chat,
    "sglang": _generate,
}


def _openai_body(target: Target, turn: Turn) -> dict[str, Any]:
    body = {
        "model": target.model,
        "max_tokens": turn.output_len,
        "temperature": target.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.ignore_eos:  # no field of OpenAI's: sent only when it says something
        body["ignore_eos"] = True
    return {**body, **target.extra_body}


def _note_openai(
    record: RequestRecord, event: dict[str, Any], text_of: Callable[[dict[str, Any]], str | None]
) -> None:
    """Note one event: a piece of text counts as one token until the usage at the end says better."""
    if "error" in event:
        raise HttpError(_message(event["error"]))
    for choice in event.get("choices") or []:
        if text := text_of(choice):
            record.arrivals.append(time.perf_counter())
            record.arrived_tokens.append(1)
            record.text += text
    if usage := event.get("usage"):
        record.prompt_tokens = usage["prompt_tokens"]
        record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        _spread(record, usage["completion_tokens"])


def _spread(record: RequestRecord, tokens: int) -> None:
    """Give the arrivals the true number of tokens, spread evenly."""
    if tokens and not record.arrivals:  # tokens without text
        record.arrivals.append(time.perf_counter())
    pieces = len(record.arrivals)
    bounds = [tokens * each // pieces for each in range(pieces + 1)] if pieces else []
    record.arrived_tokens = [high - low for low, high in zip(bounds, bounds[1:], strict=False)]


def _chat_text(choice: dict[str, Any]) -> str | None:
    delta = choice.get("delta") or {}
    text: str | None = delta.get("content") or delta.get("reasoning_content")
    return text


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def check_unit(protocol: str, unit: str, several_turns: bool) -> Literal["ids", "words"]:
    """What the prompts are made of. Raises ConfigError where a protocol has no place for token ids."""
    needs_words = protocol == "openai-chat" or (several_turns and protocol == "openai")
    if unit == "ids" and needs_words:
        raise ConfigError(
            f"prompt_format is 'ids', which {protocol} cannot carry here (chat messages are text, and"
            " completions return no ids to continue from); accepted are auto and words"
        )
    if unit == "auto":
        return "words" if needs_words else "ids"
    return "ids" if unit == "ids" else "words"
