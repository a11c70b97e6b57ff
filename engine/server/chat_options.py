"""What a chat request asks of the template and the formats, checked against what the model has."""

from typing import Any

from ..errors import RequestError
from ..text.tools.format import Tools
from .conversation import check_tools
from .protocol.openai import ChatBody
from .protocol.tools import callable_tools, read_tools
from .state import Server
from .templates import check_variables
from .thinking import effort_variables


def chat_tools(server: Server, body: ChatBody) -> tuple[list[dict[str, Any]], Tools, bool]:
    """The tools for the template, none where the model may not call any; the schemas by name of those that it
    may call; and whether it must.

    Raises RequestError, naming the field, also when the model's template cannot do tools.
    """
    tools, schemas = read_tools(body.tools)
    schemas, must = callable_tools(body.tool_choice, schemas)
    if not schemas:
        return [], {}, False
    check_tools(server, 'tool_choice "none"')
    return tools, schemas, must


def chat_variables(server: Server, body: ChatBody) -> dict[str, Any]:
    """The template's variables that the request sets. Raises RequestError for one that does nothing."""
    variables, effort = body.chat_template_kwargs, body.reasoning_effort
    check_variables(variables)
    if effort is None:
        return variables
    chosen = effort_variables(server, effort, "reasoning_effort")
    if variables.get("reasoning_effort", effort) != effort:
        raise RequestError(
            f'reasoning_effort is "{effort}" and chat_template_kwargs has another; accepted is one of them',
            "reasoning_effort",
        )
    return {**variables, **chosen}
