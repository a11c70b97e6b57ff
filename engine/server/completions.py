"""/v1/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ..errors import RequestError
from ..outputs import RequestOutput
from .generation import Job, collect, outputs
from .logprobs import completion_logprobs
from .openai_common import check_model, finish_reason, head, matched_stop, need_tokenizer, new_id, usage
from .protocol.openai import CompletionBody
from .protocol.sampling import cache_key, read_stream_options, sampling_params
from .responses import json_response
from .routes import post
from .state import Server
from .streaming import DONE, EventStream, event

KIND = "text_completion"


def add_completion_routes(app: FastAPI, server: Server) -> None:
    """Add /v1/completions to `app`."""

    @post(app, server, "/v1/completions", body=CompletionBody)
    async def completions(request: Request, body: CompletionBody) -> Response:
        check_model(server, body.model)
        options = read_stream_options(body)
        job = _job(server, body)
        if body.stream:
            return EventStream(server, _events(server, body, job, options.include_usage))
        finals = await collect(server, request.receive, job)
        return json_response(_answer(server, body, job, finals))


def _job(server: Server, body: CompletionBody) -> Job:
    if body.best_of is not None and body.best_of != body.n:
        raise RequestError(f"best_of is {body.best_of}; accepted is n, which is {body.n}", "best_of")
    if any(isinstance(each, str) for each in body.prompt):
        need_tokenizer(server, "prompt")
    params = sampling_params(body, server.llm.info.default_sampling, body.max_tokens, body.logprobs)
    count = len(body.prompt)
    return Job(
        prompts=body.prompt,
        params=[params] * count,
        id=new_id(body, "cmpl"),
        priority=body.priority,
        extra_key=cache_key(body),
    )


def _answer(
    server: Server, body: CompletionBody, job: Job, finals: list[list[RequestOutput]]
) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for output in (each for sequences in finals for each in sequences):
        logprobs = None
        if body.logprobs is not None and output.logprobs is not None:
            logprobs = completion_logprobs(server.texts, output.token_ids, output.logprobs, body.logprobs, 0)
        choices.append(_choice(len(choices), output.text, logprobs, output))
    return {**head(server, job.id, KIND), "choices": choices, "usage": usage(finals)}


async def _events(
    server: Server, body: CompletionBody, job: Job, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    start = head(server, job.id, KIND)
    finals: list[list[Any]] = [[None] * body.n for _ in job.prompts]
    offsets: dict[int, int] = {}  # choice -> characters of the tokens told so far
    async with aclosing(outputs(server, job)) as stream:
        async for prompt, output in stream:
            finals[prompt][output.index] = output
            index = prompt * body.n + output.index
            logprobs = None
            if body.logprobs is not None and output.logprobs is not None and output.new_token_ids:
                new = output.new_token_ids
                told = output.logprobs[-len(new) :]
                logprobs = completion_logprobs(server.texts, new, told, body.logprobs, offsets.get(index, 0))
                offsets[index] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
            if output.text_delta or logprobs or output.finish_reason is not None:
                choice = _choice(index, output.text_delta, logprobs, output)
                yield event({**start, "choices": [choice]})
    tail = event({**start, "choices": [], "usage": usage(finals)}) if include_usage else b""
    yield tail + DONE


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, output: RequestOutput) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish_reason(output),
        **matched_stop(output),
    }
