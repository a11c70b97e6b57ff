"""What a chat request asks of the template and the formats, checked against what the model has."""

from typing import Any

from ..errors import RequestError
from ..text.tools.format import Tools
from .conversation import check_tools
from .openai_common import need_tokenizer
from .protocol.base import shorten
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
    _check_budget_variable(server, body)
    if effort is None:
        return variables
    chosen = effort_variables(server, effort, "reasoning_effort")
    if variables.get("reasoning_effort", effort) != effort:
        raise RequestError(
            f'reasoning_effort is "{effort}" and chat_template_kwargs has another; accepted is one of them',
            "reasoning_effort",
        )
    return {**variables, **chosen}


def chat_budget(body: ChatBody) -> tuple[int | None, str]:
    """The most tokens of reasoning, None for no bound, and the field that has it."""
    names = [name for name in ("thinking_budget", "thinking_token_budget") if getattr(body, name) is not None]
    if len({getattr(body, name) for name in names}) > 1:
        raise RequestError(
            f"thinking_budget is {body.thinking_budget} and thinking_token_budget"
            f" {body.thinking_token_budget}; accepted is one of them, or both alike",
            "thinking_token_budget",
        )
    return (getattr(body, names[0]), names[0]) if names else (None, "thinking_budget")


def _check_budget_variable(server: Server, body: ChatBody) -> None:
    """A budget for the template alone is a wish; one that it does not take would be nothing."""
    name = "chat_template_kwargs.thinking_budget"
    if "thinking_budget" not in body.chat_template_kwargs:
        return
    wish, (budget, field) = body.chat_template_kwargs["thinking_budget"], chat_budget(body)
    if not need_tokenizer(server, "messages").template_takes("thinking_budget"):
        raise RequestError(
            f"{name} is {shorten(wish)}; the model's chat template does not take it, accepted is"
            " thinking_budget beside chat_template_kwargs, which holds for every model that reasons",
            name,
        )
    if budget is not None and wish != budget:
        raise RequestError(
            f"{name} is {shorten(wish)} and {field} {budget}; accepted is one of them, or both alike", name
        )
