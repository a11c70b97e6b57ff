"""Bodies of /v1/messages and /v1/messages/count_tokens."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from ..protocol.base import Body, Float, Int
from ..protocol.sampling import DEFAULT_NAME, Budget, StopStrings
from ..protocol.schema import Checked

_CACHE = frozenset({"cache_control"})  # every prompt is kept anyway, as long as there is room


def _check_content(value: object) -> object:
    if not isinstance(value, (str, list)):
        raise ValueError("a string, or a list of content blocks")
    return value


Content = Annotated[str | list[Any], BeforeValidator(_check_content)]


class TextBlock(Body):
    """Text of a message, of the system prompt, or of a tool's result."""

    type: Literal["text"]
    text: str

    without_effect: ClassVar[frozenset[str]] = _CACHE
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"citations": ([],)}


class ThinkingBlock(Body):
    """What the model thought in an earlier answer."""

    type: Literal["thinking"]
    thinking: str

    without_effect: ClassVar[frozenset[str]] = frozenset({"signature"})


class ToolUseBlock(Body):
    """A call of an earlier answer."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]

    without_effect: ClassVar[frozenset[str]] = _CACHE
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "caller": ({"type": "direct"},),
        "toolset_name": (),
    }


class ToolResultBlock(Body):
    """What a call brought."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[Content, Checked((TextBlock,))] = ""
    is_error: bool = False

    without_effect: ClassVar[frozenset[str]] = _CACHE
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"toolset_name": ()}


class Turn(Body):
    """One of `messages`."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[str | list[Any], Checked((TextBlock, ThinkingBlock, ToolUseBlock, ToolResultBlock))]


class ToolDefinition(Body):
    """One of `tools`."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] = "custom"
    strict: bool = False  # arguments are of the schema

    # arguments are streamed as the model writes them, whether or not it is asked for
    without_effect: ClassVar[frozenset[str]] = _CACHE | {"eager_input_streaming"}
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "defer_loading": (False,),
        "allowed_callers": (["direct"],),
        "input_examples": ([],),
    }


class ToolChoice(Body):
    """Whether and which tools may be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(Body):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Budget | None = None

    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"display": ("summarized",)}


class OutputConfig(Body):
    """How much the model thinks, and what its answer has to be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = None


class CountTokensBody(Body):
    """Body of /v1/messages/count_tokens: what makes the prompt."""

    model: str = DEFAULT_NAME
    messages: Annotated[list[Any], Checked((Turn,)), Field(min_length=1)]
    system: Annotated[Content, Checked((TextBlock,))] = ""
    tools: Annotated[list[Any], Checked((ToolDefinition,))] = Field(default_factory=list)
    tool_choice: Annotated[dict[str, Any] | None, Checked((ToolChoice,))] = None
    thinking: Annotated[dict[str, Any] | None, Checked((Thinking,))] = None
    output_config: Annotated[dict[str, Any] | None, Checked((OutputConfig,))] = None

    without_effect: ClassVar[frozenset[str]] = _CACHE | {"user_profile_id", "workspace_id"}
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "speed": ("standard",),
        "context_management": (),
        "mcp_servers": ([],),
    }


class MessagesBody(CountTokensBody):
    """Body of /v1/messages."""

    max_tokens: Int
    stream: bool = False
    stop_sequences: StopStrings = Field(default_factory=list)
    temperature: Float | None = None
    top_k: Int | None = None
    top_p: Float | None = None

    without_effect: ClassVar[frozenset[str]] = CountTokensBody.without_effect | {"metadata", "service_tier"}
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **CountTokensBody.only_at,
        "container": (),
        "diagnostics": (),
        "inference_geo": (),
    }


class AnthropicErrorObject(BaseModel):
    """What went wrong, in one sentence."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """The answer of every status from 400 on."""

    type: Literal["error"]
    error: AnthropicErrorObject
