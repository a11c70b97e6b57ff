"""Which tool and reasoning format a server reads, and why: told at start-up."""

from dataclasses import dataclass

from ..config import Choice
from ..errors import ConfigError
from ..text.reasoning.format import ReasoningFormat
from ..text.reasoning.registry import REASONING_FORMATS, reasoning_format_of
from ..text.tokenizer import Tokenizer
from ..text.tools.format import ToolFormat
from ..text.tools.registry import TOOL_FORMATS, tool_format_of
from .options import ServerOptions


@dataclass(frozen=True, slots=True)
class Formats:
    """None: calls, or reasoning, are not told from other text. `choices` are those that were automatic."""

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    choices: tuple[Choice, ...] = ()


def choose_formats(tokenizer: Tokenizer | None, options: ServerOptions) -> Formats:
    """The formats that `options` name, or that the chat template shows where they are "auto".

    Raises ConfigError when a format is named and there is no text to read.
    """
    if tokenizer is None:
        _refuse("tool_call_parser", options.tool_call_parser)
        _refuse("reasoning_parser", options.reasoning_parser)
        return Formats(None, None)
    template, choices = tokenizer.chat_template, []
    tools = TOOL_FORMATS.get(options.tool_call_parser)
    if options.tool_call_parser == "auto":
        found = tool_format_of(template)
        tools = found[0] if found else None
        choices.append(_choice("tool_call_parser", found))
    reasoning = REASONING_FORMATS.get(options.reasoning_parser)
    if options.reasoning_parser == "auto":
        shown = reasoning_format_of(template)
        reasoning = shown[0] if shown else None
        choices.append(_choice("reasoning_parser", shown))
    return Formats(tools, reasoning, tuple(choices))


def _choice(name: str, found: tuple[ToolFormat | ReasoningFormat, str] | None) -> Choice:
    if found is None:
        return Choice(name, "none", "the chat template shows no format that is known")
    return Choice(name, found[0].name, f"the chat template has {found[1]}")


def _refuse(name: str, value: str) -> None:
    if value not in ("auto", "none"):
        raise ConfigError(f"{name} is {value!r}; with skip_tokenizer_init there is no text, accepted is none")
