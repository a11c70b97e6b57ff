"""From Ollama's requests to the engine's."""

import asyncio
import uuid
from dataclasses import replace
from typing import Any

from ...errors import RequestError
from ...grammar.given import spec_of
from ...grammar.grammar import GrammarSpec
from ...request import SamplingParams
from ..conversation import Conversation, check_tools, start_chat
from ..generation import Job
from ..message import Reading
from ..openai_common import need_tokenizer
from ..protocol.base import parse
from ..protocol.sampling import make_params
from ..protocol.tools import read_tools, strict_tools
from ..state import Server
from ..thinking import effort_variables, thinking_variables
from .protocol import (
    OllamaBody,
    OllamaCall,
    OllamaChatBody,
    OllamaFunction,
    OllamaGenerateBody,
    OllamaMessage,
    OllamaOptions,
)

# SamplingParams' name -> the option's
_OPTIONS = {
    "max_new_tokens": "num_predict",
    "repetition_penalty": "repeat_penalty",
    "sampling_seed": "seed",
    **{
        name: name for name in "temperature top_k top_p min_p presence_penalty frequency_penalty stop".split()
    },
}
_PATHS = {name: f"options.{option}" for name, option in _OPTIONS.items()} | {"logprobs": "top_logprobs"}


async def read_chat(server: Server, body: OllamaChatBody) -> tuple[Job, Reading]:
    """The work that /api/chat asks for, and how its answer is read. Raises RequestError."""
    tools, schemas = read_tools(body.tools)
    if tools:
        check_tools(server, "no tools")
    messages = [_message(item, f"messages[{index}]") for index, item in enumerate(body.messages)]
    goes_on = messages[-1]["role"] == "assistant"
    chat = Conversation(
        messages=messages,
        tools=tools,
        schemas=schemas,
        strict=strict_tools(body.tools),
        variables=_variables(server, body),
        opens_answer=not goes_on,
        continues=goes_on,
    )
    return await _start(server, body, chat)


async def read_prompt(server: Server, body: OllamaGenerateBody) -> tuple[Job, Reading]:
    """The work that /api/generate asks for, and how its answer is read. Raises RequestError."""
    if body.raw:
        return await _raw(server, body)
    messages = [{"role": "system", "content": body.system}] if body.system else []
    messages.append({"role": "user", "content": body.prompt})
    return await _start(server, body, Conversation(messages, variables=_variables(server, body)))


async def _start(server: Server, body: OllamaBody, chat: Conversation) -> tuple[Job, Reading]:
    options = parse(OllamaOptions, body.options, "options")
    job, reading = await start_chat(server, chat, _params(server, body, options), _new_id())
    return _within(job, options), reading


async def _raw(server: Server, body: OllamaGenerateBody) -> tuple[Job, Reading]:
    """The prompt is all that the model reads, and its text all that is answered."""
    for name, value in (("system", body.system or None), ("think", body.think)):
        if value is not None:
            raise RequestError(f"{name} is given; with raw true the prompt is the whole text", name)
    tokenizer = need_tokenizer(server, "prompt")
    most = server.llm.info.context_length
    ids = await asyncio.to_thread(tokenizer.encode, body.prompt, True, most)
    options = parse(OllamaOptions, body.options, "options")
    return _within(Job([ids], [_params(server, body, options)], _new_id()), options), Reading()


def _new_id() -> str:
    return f"ollama-{uuid.uuid4().hex}"


def _params(server: Server, body: OllamaBody, options: OllamaOptions) -> SamplingParams:
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError(
            f"top_logprobs is {body.top_logprobs}; it is accepted only with logprobs true", "top_logprobs"
        )
    most = server.llm.info.context_length
    if options.num_ctx is not None and options.num_ctx > most:
        raise RequestError(
            f"options.num_ctx is {options.num_ctx}; the model's context here is {most} tokens, the most that"
            " is accepted",
            "options.num_ctx",
        )
    given: dict[str, Any] = {name: getattr(options, option) for name, option in _OPTIONS.items()}
    given["max_new_tokens"] = None if options.num_predict < 0 else options.num_predict
    given["sampling_seed"] = None if options.seed == -1 else options.seed  # -1: a new one each time
    if options.top_k is not None and options.top_k <= 0:
        given["top_k"] = -1
    given["grammar"] = _grammar(body)
    given["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    return make_params(given, server.llm.info.default_sampling, _PATHS)


def _grammar(body: OllamaBody) -> GrammarSpec | None:
    if isinstance(body.format, dict):
        return spec_of("json_schema", body.format)
    return GrammarSpec("json_object") if body.format else None


def _within(job: Job, options: OllamaOptions) -> Job:
    """`job`, its prompt and answer within `num_ctx` together."""
    job = replace(job, grammar_field=job.grammar_field or "format")
    if options.num_ctx is None:
        return job
    (prompt,), (params,) = job.prompts, job.params
    room = options.num_ctx - len(prompt)
    if room < 1:
        raise RequestError(
            f"options.num_ctx is {options.num_ctx} and the prompt has {len(prompt)} tokens; accepted is at"
            f" least {len(prompt) + 1}, for prompts are not shortened",
            "options.num_ctx",
        )
    limit = room if params.max_new_tokens is None else min(room, params.max_new_tokens)
    return replace(job, params=[replace(params, max_new_tokens=limit)])


def _variables(server: Server, body: OllamaBody) -> dict[str, Any]:
    """The template's variables for how much the model thinks."""
    if body.think is None:
        return {}
    if isinstance(body.think, str):
        return effort_variables(server, body.think, "think")
    return thinking_variables(server, body.think, "think", body.think)


def _message(item: object, path: str) -> dict[str, Any]:
    """A message as a chat template takes it."""
    message = parse(OllamaMessage, item, path)
    calls = [_call(each, f"{path}.tool_calls[{k}]") for k, each in enumerate(message.tool_calls)]
    fields = {
        "name": message.tool_name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.thinking,
        "tool_calls": calls or None,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return {"role": message.role, "content": message.content, **given}


def _call(item: object, path: str) -> dict[str, Any]:
    call = parse(OllamaCall, item, path)
    function = parse(OllamaFunction, call.function, f"{path}.function")
    known = {} if call.id is None else {"id": call.id}
    return {**known, "type": "function", "function": function.model_dump()}
