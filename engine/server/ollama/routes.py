"""/api/generate, /api/chat and what is told of the model, as Ollama's clients know them."""

from asyncio import to_thread
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ...outputs import RequestOutput
from ..generation import Job, collect, outputs
from ..logprobs import chat_logprobs
from ..message import Reading
from ..openai_common import check_model
from ..openapi import errors_as
from ..protocol.sampling import DEFAULT_NAME
from ..responses import json_response
from ..routes import post
from ..state import Server
from ..streaming import LINES, EventStream, line
from .answer import Answer, Timing
from .models import API_VERSION, ModelFacts, card, facts_of, running_card, show, timestamp
from .protocol import OllamaBody, OllamaChatBody, OllamaError, OllamaGenerateBody, ShowBody
from .reading import read_chat, read_prompt

Told = dict[str, Any]  # of an answer: content, and thinking and tool_calls if there are any
Form = Callable[[Told], dict[str, Any]]  # as a route's lines have it


def add_ollama_routes(app: FastAPI, server: Server) -> None:
    """Add /api/generate and /api/chat, and /api/tags, /api/show, /api/ps and /api/version, to `app`."""
    lines, errors = LINES.decode(), errors_as(OllamaError)

    @post(app, server, "/api/generate", body=OllamaGenerateBody, stream_type=lines, responses=errors)
    async def generate(request: Request, body: OllamaGenerateBody) -> Response:
        _check_model(server, body.model)
        if not body.prompt:
            return _loaded(server, body, _generated)
        job, reading = await read_prompt(server, body)
        return await _answer(server, request, body, _Lines(server, body, job, reading, _generated))

    @post(app, server, "/api/chat", body=OllamaChatBody, stream_type=lines, responses=errors)
    async def chat(request: Request, body: OllamaChatBody) -> Response:
        _check_model(server, body.model)
        if not body.messages:
            return _loaded(server, body, _said)
        job, reading = await read_chat(server, body)
        return await _answer(server, request, body, _Lines(server, body, job, reading, _said))

    _add_model_routes(app, server)


def _add_model_routes(app: FastAPI, server: Server) -> None:
    @cache
    def read_facts() -> ModelFacts:
        return facts_of(server.llm.info.path)

    @app.get("/api/tags")
    async def tags() -> Response:
        return json_response({"models": [card(server, await to_thread(read_facts))]})

    @app.get("/api/ps")
    async def running() -> Response:
        return json_response({"models": [running_card(server, await to_thread(read_facts))]})

    @app.get("/api/version")
    async def version() -> Response:
        return json_response({"version": API_VERSION})

    @post(app, server, "/api/show", body=ShowBody, responses=errors_as(OllamaError))
    async def show_model(request: Request, body: ShowBody) -> Response:
        _check_model(server, body.model or body.name or DEFAULT_NAME)
        return json_response(show(server, await to_thread(read_facts)))


def _check_model(server: Server, name: str) -> None:
    """As elsewhere; Ollama's names may have a tag, and the one here is "latest"."""
    check_model(server, name.removesuffix(":latest"))


def _generated(told: Told) -> dict[str, Any]:
    thinking = {"thinking": told["thinking"]} if "thinking" in told else {}
    return {"response": told["content"], **thinking}


def _said(told: Told) -> dict[str, Any]:
    return {"message": {"role": "assistant", **told}}


def _loaded(server: Server, body: OllamaBody, form: Form) -> Response:
    """The answer to who only wants the model to be loaded."""
    done = {**_head(server), **form({"content": ""}), "done": True, "done_reason": "load"}
    return Response(line(done), media_type=LINES.decode()) if body.stream else json_response(done)


def _head(server: Server) -> dict[str, Any]:
    return {"model": server.llm.info.name, "created_at": timestamp()}


async def _answer(server: Server, request: Request, body: OllamaBody, lines: "_Lines") -> Response:
    if body.stream:
        return EventStream(server, lines.stream(), LINES)
    ((output,),) = await collect(server, request.receive, lines.job, lines.timing.saw)
    return json_response(lines.whole(output))


class _Lines:
    """One answer, whole or as lines of JSON."""

    def __init__(self, server: Server, body: OllamaBody, job: Job, reading: Reading, form: Form) -> None:
        self.job = job
        self.timing = Timing()
        self._server, self._body, self._form = server, body, form
        self._answer = Answer(reading)

    def whole(self, output: RequestOutput) -> dict[str, Any]:
        """The answer in one object."""
        told = self._form(self._answer.add(output.text, last=True))
        last = self.timing.last_words(output)
        return {**_head(self._server), **told, **self._logprobs(output, len(output.token_ids)), **last}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The lines, one write for what a step brought."""
        async with aclosing(outputs(self._server, self.job)) as stream:
            async for _, output in stream:
                self.timing.saw(output)
                last = output.finish_reason is not None
                told = self._answer.add(output.text_delta, last)
                logprobs = self._logprobs(output, len(output.new_token_ids))
                data = b""
                if told != {"content": ""} or logprobs:
                    data = line({**_head(self._server), **self._form(told), **logprobs, "done": False})
                if last:
                    end = {**self._form({"content": ""}), **self.timing.last_words(output)}
                    data += line({**_head(self._server), **end})
                if data:
                    yield data

    def _logprobs(self, output: RequestOutput, newest: int) -> dict[str, Any]:
        """Of the `newest` tokens, if there are any and they were asked for."""
        if not newest or not self._body.logprobs or output.logprobs is None:
            return {}
        first, count = len(output.token_ids) - newest, self._body.top_logprobs or 0
        known = output.logprobs[first:]
        made = chat_logprobs(self._server.texts, output.token_ids[first:], known, count)
        return {"logprobs": made["content"]}
