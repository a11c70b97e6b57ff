"""How a request turns a model's reasoning on, off, up and down, by the variables that its template takes, and
bounds it, whatever the template takes."""

from dataclasses import replace
from typing import Any

from ..errors import RequestError
from ..grammar.grammar import GrammarSpec, Thinking
from .openai_common import need_tokenizer
from .protocol.base import shorten
from .state import Server

_SWITCHES = ("enable_thinking", "thinking")  # Qwen's and most others'; DeepSeek's and Granite's


def thinking_variables(server: Server, think: bool, field: str, value: object) -> dict[str, Any]:
    """The template's variables for reasoning or none; no variables where the model does so anyway.

    Raises RequestError, which says that `field` is `value`, where neither can be had.
    """
    tokenizer = need_tokenizer(server, "messages")
    for name in _SWITCHES:
        if tokenizer.template_takes(name):
            return {name: think}
    if think == (server.formats.reasoning is not None):
        return {}
    does = "is not known to reason" if think else "reasons always, for its chat template has no switch"
    raise RequestError(f"{field} is {shorten(value)}; {server.llm.info.name} {does}", field)


def effort_variables(server: Server, effort: str, field: str) -> dict[str, Any]:
    """The template's variable for so much reasoning. Raises RequestError where it takes none."""
    if not need_tokenizer(server, "messages").template_takes("reasoning_effort"):
        raise RequestError(
            f'{field} is "{effort}"; the model\'s chat template does not take it, accepted is null', field
        )
    return {"reasoning_effort": effort}


def budget_variables(server: Server, budget: int, field: str) -> dict[str, Any]:
    """The template's variable for the most tokens of reasoning, where it takes one.

    Raises RequestError where the model's reasoning cannot be bounded.
    """
    reasoning = server.formats.reasoning
    if reasoning is None:
        raise RequestError(
            f"{field} is {budget}; {server.llm.info.name} is not known to reason: accepted is no budget, or a"
            " server with a --reasoning-parser",
            field,
        )
    if not reasoning.has_budget:
        raise RequestError(
            f"{field} is {budget}; reasoning as {reasoning.name} writes it cannot be ended anywhere: accepted"
            " is no budget",
            field,
        )
    takes = need_tokenizer(server, "messages").template_takes("thinking_budget")
    return {"thinking_budget": budget} if takes else {}


def thinking_before(
    grammar: GrammarSpec | None, thinking: Thinking | None, budget: int | None
) -> GrammarSpec | None:
    """What an output is held to that thinks so before its answer; None for nothing."""
    if thinking is None or (grammar is None and budget is None):
        return grammar
    return replace(grammar or GrammarSpec("text"), thinking=replace(thinking, budget=budget))
