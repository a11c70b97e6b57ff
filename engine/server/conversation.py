"""A chat in any client's dialect, on its way to the engine and back: one prompt and how answers are read."""

from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import RequestError
from ..grammar.given import spec_of
from ..grammar.grammar import GrammarSpec, Thinking
from ..request import SamplingParams
from ..text.tools.forced import FORCED, calls_schema
from ..text.tools.format import Tools
from ..text.tools.strict import calls_text
from .generation import Job
from .message import Reading
from .openai_common import need_tokenizer
from .state import Server
from .templates import template_ids
from .thinking import budget_variables, thinking_before

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
    strict: frozenset[str] = frozenset()  # tools whose schema their calls have to fit
    must_call: bool = False  # the answer is calls of these tools and nothing else
    parallel: bool = True  # False: no call after the first is told
    separate_reasoning: bool = True  # False: reasoning stays in the text
    stream_reasoning: bool = True
    thinking_budget: int | None = None  # tokens
    budget_field: str = "thinking_budget"  # what the client calls it


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
    prompt_end = tokenizer.decode(ids[-_PROMPT_END:], skip_special_tokens=False)
    if _shows_marks(server, chat):
        params = replace(params, skip_special_tokens=False)
    held = _calls_grammar(chat, params) if chat.must_call else params.grammar
    if held is not None and not chat.must_call and chat.strict & chat.schemas.keys():
        raise RequestError(
            "tools has strict ones, and another field is for constrained output; accepted is one of them",
            "tools",
        )
    spec = held or _strict_calls(server, chat)
    thinking = _thinking(server, chat, held, spec, prompt_end)
    params = replace(params, grammar=thinking_before(spec, thinking, chat.thinking_budget))
    job = Job([ids], [params], id, field="messages", priority=priority, extra_key=extra_key)
    if chat.must_call or held is None:
        job = replace(job, grammar_field=chat.budget_field if spec is None else "tools")
    separate = chat.separate_reasoning and (held is None or thinking is not None)
    reading = Reading(
        tool_format=(FORCED if chat.must_call else server.formats.tools) if chat.schemas else None,
        tools=chat.schemas,
        parallel=chat.parallel,
        reasoning=server.formats.reasoning if separate else None,
        prompt_end=prompt_end,
        stream_reasoning=chat.stream_reasoning,
    )
    return job, reading


def _thinking(
    server: Server, chat: Conversation, held: GrammarSpec | None, spec: GrammarSpec | None, prompt_end: str
) -> Thinking | None:
    """How the output thinks before its answer; None: not at all, or what it is held to is of all of it.

    `held` is what the whole answer is held to, `spec` also what its calls are.
    """
    reasoning = server.formats.reasoning
    if reasoning is None or (held is not None and chat.continues):
        return None
    if spec is not None and not chat.separate_reasoning:
        return None
    return reasoning.thinking(prompt_end)


def _calls_grammar(chat: Conversation, params: SamplingParams) -> GrammarSpec:
    """What an answer must match that has to call a tool."""
    if params.grammar is not None:
        raise RequestError(
            "tool_choice asks for a call and another field for constrained output; accepted is one of them",
            "tool_choice",
        )
    return spec_of("json_schema", calls_schema(chat.schemas, None if chat.parallel else 1))


def _strict_calls(server: Server, chat: Conversation) -> GrammarSpec | None:
    """What the calls that the model may make are held to; None where no tool is strict."""
    format, strict = server.formats.tools, chat.strict & chat.schemas.keys()
    if not strict or format is None:
        return None
    if format.tags is None:
        raise RequestError(
            f"strict is true of the tool {min(strict)}; calls as {format.name} writes them cannot be held to"
            ' a schema, but those that must be made: accepted is false, or tool_choice "required"',
            "tools",
        )
    if chat.thinking_budget is not None and not chat.separate_reasoning:
        raise RequestError(
            f"{chat.budget_field} is {chat.thinking_budget}; with reasoning in the text, where calls may be"
            " too, accepted are no strict tools",
            chat.budget_field,
        )
    return spec_of("calls", calls_text(format.tags, chat.schemas, strict))


async def prompt_ids(server: Server, chat: Conversation) -> list[int]:
    """The token ids of the prompt that `chat` is. Raises RequestError naming the message, or a field."""
    variables = chat.variables | ({"continue_final_message": True} if chat.continues else {})
    if chat.thinking_budget is not None:
        variables |= budget_variables(server, chat.thinking_budget, chat.budget_field)
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
