"""What a reasoning format is."""

from collections.abc import Callable
from dataclasses import dataclass

from ..parser import Source, Steps


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model family marks what it thinks before it answers.

    `read` gets the model's text and the prompt before it, which may have begun the thinking. Calls of
    tools come out as text. `marks` are as in ToolFormat.
    """

    name: str
    read: Callable[[Source, str], Steps[None]]
    marks: tuple[str, ...]
