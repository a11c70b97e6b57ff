"""A chat in any client's dialect, on its way to the engine and back: one prompt and how answers are read."""

from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import RequestError
from ..grammar.given import spec_of
from ..grammar.grammar import GrammarSpec
from ..request import SamplingParams
from ..text.tools.forced import FORCED, calls_schema
from ..text.tools.format import Tools
from .generation import Job
from .message import Reading
from .openai_common import need_tokenizer
from .state import Server
from .templates import template_ids

_PROMPT_END = 16  # tokens in which a template may have begun or ended the model's reasoning


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat request asks, as a chat template takes it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)  # those that may be called, as OpenAI has them
    schemas: Tools = field(default_factory=dict)  # of the parameters of these tools
    variables: dict[str, Any] = field(default_factory=dict)  # further ones of the template
    opens_answer: bool = True  # the template begins one
    continues: bool = False  # the answer goes on where the last message ends
    must_call: bool = False  # the answer is calls of these tools and nothing else
    parallel: bool = True  # False: no call after the first is told
    separate_reasoning: bool = True  # False: reasoning stays in the text
    stream_reasoning: bool = True


async def start_chat(
    server: Server,
    chat: Conversation,
    params: SamplingParams,
    id: str,
    priority: int = 0,
    extra_key: str = "",
) -> tuple[Job, Reading]:
    """The work that `chat` is, and how its answers are read. Raises RequestError naming the message."""
    tokenizer = need_tokenizer(server, "messages")
    ids = await prompt_ids(server, chat)
    if _shows_marks(server, chat):
        params = replace(params, skip_special_tokens=False)
    if chat.must_call:
        params = replace(params, grammar=_calls_grammar(chat, params))
    job = Job([ids], [params], id, field="messages", priority=priority, extra_key=extra_key)
    if chat.must_call:
        job = replace(job, grammar_field="tools")
    reading = Reading(
        tool_format=(FORCED if chat.must_call else server.formats.tools) if chat.schemas else None,
        tools=chat.schemas,
        parallel=chat.parallel,
        # a grammar is of the whole output, which then has no place for reasoning
        reasoning=server.formats.reasoning if chat.separate_reasoning and params.grammar is None else None,
        prompt_end=tokenizer.decode(ids[-_PROMPT_END:], skip_special_tokens=False),
        stream_reasoning=chat.stream_reasoning,
    )
    return job, reading


def _calls_grammar(chat: Conversation, params: SamplingParams) -> GrammarSpec:
    """What an answer must match that has to call a tool."""
    if params.grammar is not None:
        raise RequestError(
            "tool_choice asks for a call and another field for constrained output; accepted is one of them",
            "tool_choice",
        )
    return spec_of("json_schema", calls_schema(chat.schemas, None if chat.parallel else 1))


async def prompt_ids(server: Server, chat: Conversation) -> list[int]:
    """The token ids of the prompt that `chat` is. Raises RequestError naming the message."""
    variables = chat.variables | ({"continue_final_message": True} if chat.continues else {})
    return await template_ids(server, chat.messages, variables, chat.opens_answer, chat.tools)


def check_tools(server: Server, otherwise: str) -> None:
    """Raise RequestError unless the model can be told of tools and its calls can be read.

    `otherwise` is what the client can ask instead, in its own words.
    """
    tokenizer = need_tokenizer(server, "messages")
    name = server.llm.info.name
    if tokenizer.has_chat_template and not tokenizer.template_uses("tools"):
        raise RequestError(
            f"tools is given; the chat template of {name} takes no tools: accepted is {otherwise}, or a"
            " server with another --chat-template",
            "tools",
        )
    if server.formats.tools is None:
        raise RequestError(
            f"tools is given; how {name} writes calls is not known: accepted is {otherwise}, or a server"
            " with a --tool-call-parser",
            "tools",
        )


def _shows_marks(server: Server, chat: Conversation) -> bool:
    """Whether special tokens must be in the text, for marks of the formats in use are among them."""
    special, formats = need_tokenizer(server, "messages").special_texts, server.formats
    used = [formats.tools if chat.tools else None, formats.reasoning if chat.separate_reasoning else None]
    return any(format is not None and not special.isdisjoint(format.marks) for format in used)
