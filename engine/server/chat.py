"""/v1/chat/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ..errors import RequestError
from ..outputs import RequestOutput
from ..request import SamplingParams
from .chat_options import chat_budget, chat_tools, chat_variables
from .conversation import Conversation, start_chat
from .generation import Job, collect, outputs
from .logprobs import chat_logprobs, prompt_logprobs
from .message import Message, Reading
from .openai_common import check_model, check_whole, chunk_usage, head, matched_stop, new_id, usage
from .protocol.grammar import read_grammar
from .protocol.openai import ChatBody, continues, read_messages
from .protocol.sampling import StreamOptions, cache_key, read_stream_options, sampling_params
from .protocol.tools import strict_tools
from .responses import json_response
from .routes import post
from .state import Server
from .streaming import DONE, EventStream, event

KIND = "chat.completion"


def add_chat_routes(app: FastAPI, server: Server) -> None:
    """Add /v1/chat/completions to `app`."""

    @post(app, server, "/v1/chat/completions", body=ChatBody)
    async def chat(request: Request, body: ChatBody) -> Response:
        check_model(server, body.model)
        options = read_stream_options(body)
        job, reading = await start_chat(
            server,
            _conversation(server, body),
            _params(server, body),
            new_id(body, "chatcmpl"),
            body.priority,
            cache_key(body),
        )
        job = replace(job, grammar_field=read_grammar(body)[1] or job.grammar_field)
        if body.stream:
            return EventStream(server, _events(server, body, job, reading, options))
        finals = await collect(server, request.receive, job)
        return json_response(_answer(server, body, job, reading, finals[0]))


def _conversation(server: Server, body: ChatBody) -> Conversation:
    tools, schemas, must_call = chat_tools(server, body)
    goes_on = continues(body)
    budget, budget_field = chat_budget(body)
    return Conversation(
        messages=read_messages(body.messages),
        tools=tools,
        schemas=schemas,
        variables=chat_variables(server, body),
        opens_answer=not goes_on and body.add_generation_prompt is not False,
        continues=goes_on,
        strict=strict_tools(body.tools),
        must_call=must_call,
        parallel=body.parallel_tool_calls and not isinstance(body.tool_choice, dict),
        separate_reasoning=body.separate_reasoning,
        stream_reasoning=body.stream_reasoning,
        thinking_budget=budget,
        budget_field=budget_field,
    )


def _params(server: Server, body: ChatBody) -> SamplingParams:
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError(
            f"top_logprobs is {body.top_logprobs}; it is accepted only with logprobs true", "top_logprobs"
        )
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise RequestError(
            f"max_tokens is {body.max_tokens} and max_completion_tokens {body.max_completion_tokens};"
            " accepted is one of them, or both alike",
            "max_completion_tokens",
        )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    check_whole(body.prompt_logprobs, body.stream)
    most = limits.pop() if limits else None
    return sampling_params(body, server.llm.info.default_sampling, most, logprobs, body.prompt_logprobs)


def _answer(
    server: Server, body: ChatBody, job: Job, reading: Reading, finals: list[RequestOutput]
) -> dict[str, Any]:
    choices = []
    for output in finals:
        message = Message(reading)
        message.add(output.text, last=True)
        choices.append(
            {
                "index": output.index,
                "message": message.whole(),
                "logprobs": _logprobs(server, body, output, len(output.token_ids)),
                "finish_reason": message.finish_reason(output.finish_reason),
                **matched_stop(output),
            }
        )
    prompt = {}
    if body.prompt_logprobs is not None:
        prompt = {"prompt_logprobs": prompt_logprobs(server.texts, finals[0], body.prompt_logprobs)}
    return {**head(server, job.id, KIND), "choices": choices, "usage": usage([finals]), **prompt}


async def _events(
    server: Server, body: ChatBody, job: Job, reading: Reading, options: StreamOptions
) -> AsyncGenerator[bytes, None]:
    start = head(server, job.id, KIND + ".chunk")
    finals: list[Any] = [None] * body.n
    messages = [Message(reading) for _ in range(body.n)]

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return event({**start, "choices": [choice], **chunk_usage(options, [finals])})

    async with aclosing(outputs(server, job)) as stream:
        async for _, output in stream:
            index, message, data = output.index, messages[output.index], b""
            if finals[index] is None:
                data += chunk(index, {"role": "assistant", "content": ""})
            finals[index] = output
            logprobs = _logprobs(server, body, output, len(output.new_token_ids))
            deltas = message.add(output.text_delta, last=output.finish_reason is not None)
            if not deltas and logprobs and logprobs["content"]:
                deltas = [{"content": ""}]
            for delta in deltas:
                data += chunk(index, delta, logprobs=logprobs)
                logprobs = None  # they are of all that this output brought, and told once
            if output.finish_reason is not None:
                reason = message.finish_reason(output.finish_reason)
                data += chunk(index, {}, finish_reason=reason, **matched_stop(output))
            if data:
                yield data
    tail = event({**start, "choices": [], "usage": usage([finals])}) if options.include_usage else b""
    yield tail + DONE


def _logprobs(server: Server, body: ChatBody, output: RequestOutput, newest: int) -> dict[str, Any] | None:
    """Of the `newest` tokens."""
    if not body.logprobs or output.logprobs is None:
        return None
    first = len(output.token_ids) - newest
    return chat_logprobs(
        server.texts, output.token_ids[first:], output.logprobs[first:], body.top_logprobs or 0
    )
