"""/v1/responses: made at once, as a stream or in the background; looked at, cancelled, deleted."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ...errors import RadixMeshError, RequestError
from ...outputs import RequestOutput
from ...request import SamplingParams
from ..conversation import start_chat
from ..errors import ResponseNotFoundError
from ..generation import Job, outputs, time_limit, until_gone
from ..logprobs import chat_logprobs
from ..message import Reading
from ..openai_common import check_model
from ..protocol.base import shorten
from ..protocol.query import read_query, takes_query
from ..protocol.sampling import SamplingBody, sampling_params
from ..responses import json_response
from ..routes import post
from ..state import Server
from ..streaming import EventStream, event
from ..visit import current_visit
from .answer import Answer
from .items import named, page_of
from .protocol import LOGPROBS, ItemsQuery, ResponseBody, ResponseQuery
from .reading import FORMAT, read_conversation, read_format, read_input
from .store import Kept, ResponseStore, Told


def add_response_routes(app: FastAPI, server: Server) -> None:
    """Add /v1/responses and what is below it to `app`."""
    store = ResponseStore()

    @post(app, server, "/v1/responses", body=ResponseBody)
    async def create_response(request: Request, body: ResponseBody) -> Response:
        work = await _Work.of(server, store, body)
        if body.background:
            return work.in_background()
        if body.stream:
            return EventStream(server, work.events())
        await until_gone(request.receive, work.whole())
        return json_response(work.answer.response)

    @app.get("/v1/responses/{response_id}", openapi_extra=takes_query(ResponseQuery))
    async def response(request: Request, response_id: str) -> Response:
        query = read_query(ResponseQuery, request.query_params.multi_items())
        kept = store.find(response_id, current_visit().key)
        if query.stream:
            return EventStream(server, _told(kept).after(-1 if (at := query.starting_after) is None else at))
        if query.starting_after is not None:
            raise RequestError(
                f"starting_after is {query.starting_after}; it is accepted only with stream=true",
                "starting_after",
            )
        return json_response(kept.answer.response)

    @app.get("/v1/responses/{response_id}/input_items", openapi_extra=takes_query(ItemsQuery))
    async def input_items(request: Request, response_id: str) -> Response:
        query = read_query(ItemsQuery, request.query_params.multi_items())
        return json_response(page_of(store.find(response_id, current_visit().key).items, query))

    @app.delete("/v1/responses/{response_id}")
    async def delete_response(response_id: str) -> Response:
        kept = store.delete(response_id, current_visit().key)
        await _stop(kept)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @app.post("/v1/responses/{response_id}/cancel")
    async def cancel_response(response_id: str) -> Response:
        kept = store.find(response_id, current_visit().key)
        if kept.task is None:
            raise RequestError(
                f"response {shorten(response_id)} was not asked for with background true; only such can be"
                " cancelled",
                "response_id",
            )
        await _stop(kept)
        return json_response(kept.answer.response)


async def _stop(kept: Kept) -> None:
    """End a response that is made in the background, if it is not at its end."""
    if kept.task is not None and not kept.task.done():
        kept.task.cancel()
        await asyncio.wait([kept.task])
        kept.tell(kept.answer.end_early(), last=True)  # the task may not even have begun


def _told(kept: Kept) -> Told:
    """The events of a response that can be streamed again."""
    if kept.told is None:
        raise RequestError(
            f"response {shorten(kept.answer.response['id'])} was not asked for with background and stream"
            " true; only of such events are kept, accepted is stream=false",
            "stream",
        )
    return kept.told


class _Work:
    """One response in the making."""

    def __init__(
        self, server: Server, store: ResponseStore, body: ResponseBody, items: list[dict[str, Any]]
    ) -> None:
        self._server = server
        self._store = store
        self._body = body
        self._job: Job
        self._reading: Reading
        self.answer = Answer(f"resp_{uuid.uuid4().hex}", body, server.llm.info.name)
        self._kept = Kept(self.answer, current_visit().key, items)

    @classmethod
    async def of(cls, server: Server, store: ResponseStore, body: ResponseBody) -> "_Work":
        """What `body` asks for, ready to begin. Raises RequestError, naming the field."""
        check_model(server, body.model)
        if body.background and not body.store:
            raise RequestError("background is true and store false; accepted is one of them", "background")
        before = _before(store, body)
        messages = read_input(body.input, read_input(before))
        chat = read_conversation(server, body, messages)
        params = _params(server, body)
        work = cls(server, store, body, before + named(body.input))
        id = work.answer.response["id"]
        try:
            job, reading = await start_chat(server, chat, params, id, body.priority, _key(body))
        except RequestError as error:
            if error.field == "messages":
                error.field = "input"
            raise
        work._job = job if params.grammar is None else replace(job, grammar_field=FORMAT)
        work._reading = reading
        return work

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Each step's events. An error after the first is the last event."""
        started = False
        try:
            async with aclosing(self._steps()) as steps:
                async for events in steps:
                    if events:
                        started = True
                        yield b"".join(event(each, each["type"]) for each in events)
        except RadixMeshError as error:
            if not started:
                raise
            failed = self.answer.fail(error)
            yield event(failed, failed["type"])
        finally:
            self.answer.end_early()  # if it is not at its end: the client is gone, or time is up
            self._keep()

    async def whole(self) -> None:
        """Make the response. Raises what ends it too early."""
        async with time_limit(self._server), aclosing(self._steps()) as steps:
            async for _ in steps:
                pass
        self._keep()

    def in_background(self) -> Response:
        """Begin, and go on when this request is answered, or its client is gone."""
        self._server.check_serving()
        first = json_response(self.answer.response)
        if self._body.stream:
            self._kept.told = Told()
            first = EventStream(self._server, self._kept.told.after(-1))
        self._kept.task = asyncio.create_task(self._run())
        self._store.keep(self._kept)
        return first

    async def _run(self) -> None:
        try:
            async with time_limit(self._server), aclosing(self._steps()) as steps:
                async for events in steps:
                    self._kept.tell(events)
        except Exception as error:
            self._kept.tell([self.answer.fail(error)])
        finally:
            self._kept.tell(self.answer.end_early(), last=True)
            self._store.resize(self._kept)

    async def _steps(self) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The events that each step of the engine brings."""
        begun = False
        async with aclosing(outputs(self._server, self._job)) as stream:
            async for _, output in stream:
                events = [] if begun else self.answer.start(self._reading)
                begun = True
                yield events + self.answer.add(output, self._logprobs(output))

    def _logprobs(self, output: RequestOutput) -> list[dict[str, Any]]:
        new = len(output.new_token_ids)
        if output.logprobs is None or not new:
            return []
        count = self._body.top_logprobs or 0
        found = chat_logprobs(self._server.texts, output.token_ids[-new:], output.logprobs[-new:], count)
        entries: list[dict[str, Any]] = found["content"]
        return entries

    def _keep(self) -> None:
        if self._body.store:
            self._store.keep(self._kept)


def _before(store: ResponseStore, body: ResponseBody) -> list[dict[str, Any]]:
    """The items up to the end of the response before this one."""
    if body.previous_response_id is None:
        return []
    try:
        kept = store.find(body.previous_response_id, current_visit().key)
    except ResponseNotFoundError as error:
        raise RequestError(f"previous_response_id: {error}", "previous_response_id") from None
    if not kept.finished:
        raise RequestError(
            f"previous_response_id is {shorten(body.previous_response_id)}, which is still in the making;"
            " accepted is one that is finished",
            "previous_response_id",
        )
    return kept.items + _sent_back(kept.answer.response["output"])


def _sent_back(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Output items as a client would send them; of a call that was cut short nothing, for it is no call."""
    return [each for each in items if each["type"] != "function_call" or each["status"] == "completed"]


def _params(server: Server, body: ResponseBody) -> SamplingParams:
    logprobs = LOGPROBS in body.include
    if body.top_logprobs is not None and not logprobs:
        raise RequestError(
            f"top_logprobs is {body.top_logprobs}; it is accepted only with {LOGPROBS} in include",
            "top_logprobs",
        )
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos")
    sampling = SamplingBody(**{name: getattr(body, name) for name in names})
    count = (body.top_logprobs or 0) if logprobs else None
    params = sampling_params(sampling, server.llm.info.default_sampling, body.max_output_tokens, count)
    return replace(params, grammar=read_format(body))


def _key(body: ResponseBody) -> str:
    return f"\0{body.cache_salt}" if body.cache_salt else ""
