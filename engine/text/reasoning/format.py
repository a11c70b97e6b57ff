"""What a reasoning format is."""

from collections.abc import Callable
from dataclasses import dataclass

from ...grammar.grammar import Thinking
from ..parser import Source, Steps


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model family marks what it thinks before it answers.

    `read` gets the model's text and the prompt before it, which may have begun the thinking. Calls of
    tools come out as text. `marks` are as in ToolFormat. `thinking` tells how an output thinks after a
    prompt; None: its thinking is over. `has_budget`: it can be ended anywhere.
    """

    name: str
    read: Callable[[Source, str], Steps[None]]
    marks: tuple[str, ...]
    thinking: Callable[[str], Thinking | None]
    has_budget: bool = True
