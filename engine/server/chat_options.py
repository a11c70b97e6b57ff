"""What a chat request asks of the template and the formats, checked against what the model has."""

from typing import Any

from ..errors import RequestError
from ..text.tools.format import Tools
from .openai_common import need_tokenizer
from .protocol.openai import ChatBody
from .protocol.tools import calls_allowed, read_tools
from .state import Server


def chat_tools(server: Server, body: ChatBody) -> tuple[list[dict[str, Any]], Tools]:
    """The tools for the template and their schemas by name; none where the model may not call any.

    Raises RequestError, naming the field, also when the model's template cannot do tools.
    """
    tools, schemas = read_tools(body.tools)
    if not calls_allowed(body.tool_choice, schemas.keys()):
        return [], {}
    tokenizer = need_tokenizer(server, "messages")
    name = server.llm.info.name
    if tokenizer.has_chat_template and not tokenizer.template_uses("tools"):
        raise RequestError(
            f'tools is given; the chat template of {name} takes no tools: accepted is tool_choice "none",'
            " or a server with another --chat-template",
            "tools",
        )
    if server.formats.tools is None:
        raise RequestError(
            f'tools is given; how {name} writes calls is not known: accepted is tool_choice "none", or a'
            " server with a --tool-call-parser",
            "tools",
        )
    return tools, schemas


def chat_variables(server: Server, body: ChatBody) -> dict[str, Any]:
    """The template's variables that the request sets. Raises RequestError for one that does nothing."""
    variables, effort = body.chat_template_kwargs, body.reasoning_effort
    if effort is None:
        return variables
    if not need_tokenizer(server, "messages").template_uses("reasoning_effort"):
        raise RequestError(
            f'reasoning_effort is "{effort}"; the model\'s chat template does not take it, accepted is null',
            "reasoning_effort",
        )
    if variables.get("reasoning_effort", effort) != effort:
        raise RequestError(
            f'reasoning_effort is "{effort}" and chat_template_kwargs has another; accepted is one of them',
            "reasoning_effort",
        )
    return {**variables, "reasoning_effort": effort}


def shows_marks(server: Server, body: ChatBody, with_tools: bool) -> bool:
    """Whether special tokens must be in the text, for marks of the formats in use are among them."""
    special, formats = need_tokenizer(server, "messages").special_texts, server.formats
    used = [formats.tools if with_tools else None, formats.reasoning if body.separate_reasoning else None]
    return any(format is not None and not special.isdisjoint(format.marks) for format in used)
