"""/v1/messages and /v1/messages/count_tokens, as Anthropic's clients know them."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ...request import SamplingParams
from ..conversation import prompt_ids, start_chat
from ..generation import Job, collect, outputs
from ..message import Reading
from ..openai_common import check_model
from ..openapi import errors_as
from ..protocol.sampling import make_params
from ..responses import json_response
from ..routes import post
from ..state import Server
from ..streaming import EventStream, event
from .answer import Answer, usage
from .protocol import AnthropicError, CountTokensBody, MessagesBody
from .reading import read_conversation, read_format

_NAMES = {"max_new_tokens": "max_tokens", "stop": "stop_sequences"}


def add_messages_routes(app: FastAPI, server: Server) -> None:
    """Add /v1/messages and /v1/messages/count_tokens to `app`."""

    errors = errors_as(AnthropicError)

    @post(app, server, "/v1/messages", body=MessagesBody, responses=errors)
    async def messages(request: Request, body: MessagesBody) -> Response:
        check_model(server, body.model)
        params = _params(server, body)
        chat = read_conversation(server, body)
        job, reading = await start_chat(server, chat, params, f"msg_{uuid.uuid4().hex}")
        job = replace(job, grammar_field=job.grammar_field or "output_config.format.schema")
        if body.stream:
            return EventStream(server, _events(server, body, job, reading))
        ((output,),) = await collect(server, request.receive, job)
        answer = Answer(reading)
        answer.add(output.text, last=True)
        stop = answer.stop(output, body.max_tokens)
        return json_response(_message(server, job, answer.content(), stop, usage(output)))

    @post(app, server, "/v1/messages/count_tokens", body=CountTokensBody, responses=errors)
    async def count_tokens(request: Request, body: CountTokensBody) -> Response:
        check_model(server, body.model)
        read_format(body)  # a request that would be refused has no size
        ids = await prompt_ids(server, read_conversation(server, body))
        return json_response({"input_tokens": len(ids)})


def _params(server: Server, body: MessagesBody) -> SamplingParams:
    given = {
        "max_new_tokens": body.max_tokens,
        "stop": tuple(body.stop_sequences),
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p,
        "grammar": read_format(body),
    }
    return make_params(given, server.llm.info.default_sampling, _NAMES)


def _message(
    server: Server, job: Job, content: list[dict[str, Any]], stop: dict[str, Any], counts: dict[str, int]
) -> dict[str, Any]:
    return {
        "id": job.id,
        "type": "message",
        "role": "assistant",
        "model": server.llm.info.name,
        "content": content,
        **stop,
        "usage": counts,
    }


async def _events(
    server: Server, body: MessagesBody, job: Job, reading: Reading
) -> AsyncGenerator[bytes, None]:
    answer, started = Answer(reading), False
    async with aclosing(outputs(server, job)) as stream:
        async for _, output in stream:
            events = answer.add(output.text_delta, last=output.finish_reason is not None)
            if not started:
                started = True
                nothing = {"stop_reason": None, "stop_sequence": None}
                start = _message(server, job, [], nothing, usage(output))
                events = [{"type": "message_start", "message": start}, {"type": "ping"}, *events]
            if output.finish_reason is not None:
                stop = answer.stop(output, body.max_tokens)
                events.append({"type": "message_delta", "delta": stop, "usage": usage(output)})
                events.append({"type": "message_stop"})
            if events:
                yield b"".join(event(each, each["type"]) for each in events)
