"""/v1/completions."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ..errors import RequestError
from ..outputs import RequestOutput
from ..request import SamplingParams, TokenLogprobs
from ..text.fim import fim_marks, fim_prompt
from .generation import Job, collect, outputs
from .logprobs import completion_logprobs, prompt_logprobs
from .openai_common import (
    check_model,
    check_whole,
    chunk_usage,
    finish_reason,
    head,
    matched_stop,
    need_tokenizer,
    new_id,
    usage,
)
from .protocol.grammar import read_grammar
from .protocol.openai import CompletionBody, Prompt
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
        params = _params(server, body)
        prompts = await asyncio.to_thread(_prompts, server, body) if body.suffix else body.prompt
        job = Job(
            prompts=prompts,
            params=[params] * len(prompts),
            id=new_id(body, "cmpl"),
            priority=body.priority,
            extra_key=cache_key(body),
            grammar_field=read_grammar(body)[1],
        )
        answer = _Answer(server, body, job)
        if body.stream:
            return EventStream(server, answer.events())
        return json_response(answer.whole(await collect(server, request.receive, job)))


def _params(server: Server, body: CompletionBody) -> SamplingParams:
    if any(isinstance(each, str) for each in body.prompt):
        need_tokenizer(server, "prompt")
    if _scores(body) and body.suffix:
        raise RequestError("suffix is given; with echo and logprobs accepted is an empty string", "suffix")
    check_whole(body.prompt_logprobs, body.stream)
    asked = [body.prompt_logprobs, body.logprobs if body.echo else None]
    of_prompt = max((each for each in asked if each is not None), default=None)
    params = sampling_params(
        body, server.llm.info.default_sampling, body.max_tokens, body.logprobs, of_prompt
    )
    best_of = body.n if body.best_of is None else body.best_of
    if best_of < body.n or (body.stream and best_of > body.n):
        accepted = f"n, which is {body.n}, in a stream" if body.stream else f"at least n, which is {body.n}"
        raise RequestError(f"best_of is {best_of}; accepted is {accepted}", "best_of")
    if best_of == body.n:
        return params
    return replace(params, n=best_of, logprobs=params.logprobs or 0)  # they rank


def _scores(body: CompletionBody) -> bool:
    """Whether the logprobs are of the prompt too, which comes before the text."""
    return body.echo and body.logprobs is not None


def _prompts(server: Server, body: CompletionBody) -> list[Prompt]:
    """The prompts with the suffix after them, the place between them for the model to fill."""
    tokenizer = need_tokenizer(server, "suffix")
    marks = fim_marks(tokenizer)
    if marks is None:
        raise RequestError(
            f"suffix is given; {server.llm.info.name} has no tokens for filling in the middle: accepted is"
            " null or an empty string",
            "suffix",
        )
    return [fim_prompt(tokenizer, marks, prompt, body.suffix) for prompt in body.prompt]


class _Answer:
    """One request and how its outputs are written."""

    def __init__(self, server: Server, body: CompletionBody, job: Job) -> None:
        self._server = server
        self._body = body
        self._job = job
        self._options = read_stream_options(body)
        self._echo = [""] * len(body.prompt)  # what stands before each prompt's completions
        if body.echo:
            self._echo = [self._text(each) for each in body.prompt]

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        return need_tokenizer(self._server, "echo").decode(prompt, self._body.skip_special_tokens)

    def whole(self, finals: list[list[RequestOutput]]) -> dict[str, Any]:
        """The answer in one piece."""
        choices: list[dict[str, Any]] = []
        for echo, sequences in zip(self._echo, finals, strict=True):
            for output in best(sequences, self._body.n):
                logprobs = self._logprobs(output, len(output.token_ids), 0, first=True)
                choice = _choice(len(choices), echo + output.text, logprobs, output)
                choices.append({**choice, **self._prompt_logprobs(output)})
        start = head(self._server, self._job.id, KIND)
        return {**start, "choices": choices, "usage": usage(finals)}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes."""
        start = head(self._server, self._job.id, KIND)
        n = self._body.n
        finals: list[list[RequestOutput | None]] = [[None] * n for _ in self._job.prompts]
        offsets: dict[int, int] = {}  # choice -> characters of the tokens told so far
        async with aclosing(outputs(self._server, self._job)) as stream:
            async for prompt, output in stream:
                text = output.text_delta
                first = finals[prompt][output.index] is None
                if first:
                    text = self._echo[prompt] + text
                finals[prompt][output.index] = output
                index = prompt * n + output.index
                logprobs = self._logprobs(output, len(output.new_token_ids), offsets.get(index, 0), first)
                if logprobs:
                    offsets[index] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
                if text or logprobs or output.finish_reason is not None:
                    choice = _choice(index, text, logprobs, output)
                    yield event({**start, "choices": [choice], **chunk_usage(self._options, finals)})
        tail = b""
        if self._options.include_usage:
            tail = event({**start, "choices": [], "usage": usage(finals)})
        yield tail + DONE

    def _logprobs(
        self, output: RequestOutput, newest: int, offset: int, first: bool
    ) -> dict[str, Any] | None:
        """Of the `newest` tokens, and of an echoed prompt in front of the `first`, their texts counted from
        `offset`; None where none are asked for."""
        count, start = self._body.logprobs, len(output.token_ids) - newest
        if count is None or output.logprobs is None:
            return None
        ids, logprobs = output.token_ids[start:], output.logprobs[start:]
        values: list[TokenLogprobs | None] = list(logprobs)
        if first and self._body.echo and output.prompt_logprobs is not None:
            ids = (output.prompt_token_ids or []) + ids
            values = [None, *output.prompt_logprobs, *values]
        return completion_logprobs(self._server.texts, ids, values, count, offset) if ids else None

    def _prompt_logprobs(self, output: RequestOutput) -> dict[str, Any]:
        count = self._body.prompt_logprobs
        return (
            {} if count is None else {"prompt_logprobs": prompt_logprobs(self._server.texts, output, count)}
        )


def best(sequences: Sequence[RequestOutput], n: int) -> list[RequestOutput]:
    """The `n` of one prompt's sequences with the highest mean log probability of a token, best first."""

    def mean(output: RequestOutput) -> float:
        logprobs = output.logprobs or []
        return sum(each.logprob for each in logprobs) / max(len(logprobs), 1)

    return list(sequences) if n == len(sequences) else sorted(sequences, key=mean, reverse=True)[:n]


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, output: RequestOutput) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish_reason(output),
        **matched_stop(output),
    }
