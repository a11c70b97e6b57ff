"""/generate, in SGLang's form."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ..errors import RequestError
from ..outputs import RequestOutput
from ..request import FinishReason, SamplingParams, TokenLogprobs
from .generation import Job, collect, outputs
from .logprobs import native_logprobs
from .openai_common import need_tokenizer
from .protocol.base import shorten
from .protocol.native import LOGPROB_NAMES, GenerateBody, Logprobs, read_sampling
from .protocol.openai import read_prompts
from .responses import json_response
from .routes import post
from .state import Server
from .streaming import DONE, EventStream, event

T = TypeVar("T")


def add_generate_route(app: FastAPI, server: Server) -> None:
    """Add /generate to `app`."""

    @post(app, server, "/generate", body=GenerateBody, methods=("POST", "PUT"))
    async def generate(request: Request, body: GenerateBody) -> Response:
        answer = _Answer(server, body)
        if body.stream:
            return EventStream(server, answer.events())
        finals = await collect(server, request.receive, answer.job)
        items = [answer.item(k, each) for k, sequences in enumerate(finals) for each in sequences]
        return json_response(items[0] if answer.single else items)


class _Answer:
    """One /generate request and how its outputs are written."""

    def __init__(self, server: Server, body: GenerateBody) -> None:
        self._server = server
        self._started = time.perf_counter()
        prompts, one = _prompts(server, body)
        count = len(prompts)
        want = _spread(body.return_logprob, count, "return_logprob")
        self._tops = _spread(body.top_logprobs_num, count, "top_logprobs_num")
        if not any(want):
            _check_unused(body)
        self._texts = server.texts if body.return_text_in_logprobs else None
        self._asked = _asked(body, want)
        self._starts = _spread(body.logprob_start_len, count, "logprob_start_len")
        params = _params(server, body, [self._logprobs(prompt, on) for prompt, on in enumerate(want)])
        field = "text" if body.text is not None else "input_ids"
        ids = _ids(body, count)
        self.job = Job(
            prompts=prompts,
            params=params,
            id=ids[0],
            ids=ids if isinstance(body.rid, list) else (),
            field=field,
            sampling_field="sampling_params",
            names=LOGPROB_NAMES,
            priority=body.priority,
            extra_key=body.extra_key,
        )
        self.single = one and params[0].n == 1
        self._first_index = [0, *accumulate(each.n for each in params)]  # of a prompt's sequences

    def _logprobs(self, prompt: int, wanted: bool) -> Logprobs:
        top, start = self._tops[prompt], self._starts[prompt]
        if start < -1 or (start >= 0 and not wanted):
            raise RequestError(
                f"logprob_start_len is {start}; accepted is -1, or with return_logprob true the place of a"
                " prompt's token",
                "logprob_start_len",
            )
        if start == -1:
            return Logprobs(top if wanted else None, self._asked[prompt])
        return Logprobs(top, self._asked[prompt], top, start)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Text and figures so far, each time something new came."""
        async with aclosing(outputs(self._server, self.job)) as stream:
            async for prompt, output in stream:
                if output.new_token_ids or output.text_delta or output.finish_reason is not None:
                    index = self._first_index[prompt] + output.index
                    item = self.item(prompt, output)
                    yield event(item if self.single else {**item, "index": index})
        yield DONE

    def item(self, prompt: int, output: RequestOutput) -> dict[str, Any]:
        """One sequence so far."""
        meta = {
            "id": output.request_id,
            "finish_reason": _finish(output),
            "prompt_tokens": output.num_prompt_tokens,
            "completion_tokens": len(output.token_ids),
            "cached_tokens": output.num_cached_tokens,
            "e2e_latency": time.perf_counter() - self._started,
        }
        if output.logprobs is not None:
            meta |= self._native("output", prompt, output.token_ids, output.logprobs)
        if output.prompt_token_ids is not None and output.prompt_logprobs is not None:
            ids = output.prompt_token_ids[self._starts[prompt] :]
            meta |= self._native("input", prompt, ids, [None, *output.prompt_logprobs])
        return {"text": output.text, "output_ids": output.token_ids, "meta_info": meta}

    def _native(
        self, side: str, prompt: int, ids: list[int], logprobs: Sequence[TokenLogprobs | None]
    ) -> dict[str, Any]:
        return native_logprobs(
            side, self._texts, ids, logprobs, count=self._tops[prompt], asked=self._asked[prompt]
        )


def _prompts(server: Server, body: GenerateBody) -> tuple[list[str | list[int]], bool]:
    """The prompts, and whether there is just one that is not in a list."""
    if (body.text is None) == (body.input_ids is None):
        raise RequestError("accepted is one of text and input_ids, and exactly one of them", "text")
    if body.text is not None:
        need_tokenizer(server, "text")
        return read_prompts(body.text), isinstance(body.text, str)
    return read_prompts(body.input_ids), not isinstance((body.input_ids or [0])[0], list)


def _check_unused(body: GenerateBody) -> None:
    """Raise RequestError for what could have an effect only on log probabilities that nobody asks for."""
    for name in ("top_logprobs_num", "return_text_in_logprobs"):
        value = getattr(body, name)
        if any(value) if isinstance(value, list) else value:
            text = f"{name} is {shorten(value)}; it is accepted only with return_logprob true"
            raise RequestError(text, name)


def _asked(body: GenerateBody, want: list[bool]) -> list[tuple[int, ...]]:
    """The ids whose log probabilities each prompt asks for: one list for all, or one for each."""
    given: Any = body.token_ids_logprob
    many = bool(given) and isinstance(given[0], list)
    asked = [tuple(each) for each in (_spread(given, len(want), "token_ids_logprob") if many else [given])]
    asked = asked if many else asked * len(want)
    if any(ids and not on for ids, on in zip(asked, want, strict=True)):
        raise RequestError(
            "token_ids_logprob is given; it is accepted only with return_logprob true", "token_ids_logprob"
        )
    return asked


def _params(server: Server, body: GenerateBody, logprobs: list[Logprobs]) -> list[SamplingParams]:
    """One for each prompt; `logprobs` is what each asks for."""
    given = body.sampling_params
    if isinstance(given, dict):
        made = {
            each: read_sampling(given, "sampling_params", server.llm.info.default_sampling, each)
            for each in set(logprobs)
        }
        return [made[each] for each in logprobs]
    given = _spread(given, len(logprobs), "sampling_params")
    return [
        read_sampling(each, f"sampling_params[{k}]", server.llm.info.default_sampling, wanted)
        for k, (each, wanted) in enumerate(zip(given, logprobs, strict=True))
    ]


def _spread(value: T | list[T], count: int, name: str) -> list[T]:
    """`value` for each of `count` prompts, or the list of as many values that it is."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise RequestError(f"{name} has {len(value)} entries; accepted is one value, or {count}", name)
    return value


def _ids(body: GenerateBody, count: int) -> tuple[str, ...]:
    """The ids of the prompts: one that theirs begin with, or one for each."""
    ids = body.rid if isinstance(body.rid, list) else [body.rid or uuid.uuid4().hex]
    if not all(ids) or body.rid == "":
        raise RequestError("rid is empty; accepted is a string that is not", "rid")
    if isinstance(body.rid, list) and (len(ids) != count or len(set(ids)) < count):
        raise RequestError(
            f"rid has {len(ids)} entries, {len(set(ids))} of them different; accepted is one string, which"
            f" the ids of a batch begin with, or {count} different ones",
            "rid",
        )
    return tuple(ids)


def _finish(output: RequestOutput) -> dict[str, Any] | None:
    reason = output.finish_reason
    if reason is None:
        return None
    if reason is FinishReason.LENGTH:
        return {"type": "length", "length": len(output.token_ids)}
    if reason is FinishReason.STOP:
        return {"type": "stop", "matched": output.matched_stop}
    return {"type": reason.value, "message": output.error or "the request was aborted"}
