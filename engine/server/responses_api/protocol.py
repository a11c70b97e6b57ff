"""What /v1/responses takes: the request, the items that its input may have, and queries."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ...request import MAX_TOP_LOGPROBS
from ..protocol.base import Body, Float, Int, Priority
from ..protocol.openai import LABELS
from ..protocol.query import Query
from ..protocol.sampling import DEFAULT_NAME, Budget
from ..protocol.schema import Checked

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
LOGPROBS = "message.output_text.logprobs"  # of `include`


class InputText(Body):
    """A text to the model: of a message, or what a call brought."""

    type: Literal["input_text"]
    text: str


class OutputText(Body):
    """A text of the model's, sent back."""

    type: Literal["output_text"]
    text: str

    without_effect: ClassVar[frozenset[str]] = frozenset({"annotations", "logprobs"})


class ReasoningText(Body):
    """A text of the model's reasoning, sent back."""

    type: Literal["reasoning_text"]
    text: str


_NAMED = frozenset({"id", "status"})  # what an answer's items have, sent back


class MessageItem(Body):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[str | list[Any], Checked((InputText, OutputText))]

    without_effect: ClassVar[frozenset[str]] = _NAMED
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"phase": ()}

    @field_validator("content", mode="before", json_schema_input_type=str | list[Any])
    @classmethod
    def _content(cls, value: object) -> object:
        if not isinstance(value, (str, list)):
            raise ValueError("a string, or a list of text parts")
        return value


class CallItem(Body):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str

    without_effect: ClassVar[frozenset[str]] = _NAMED


class CallOutputItem(Body):
    """What a call brought."""

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[str | list[Any], Checked((InputText,))]

    without_effect: ClassVar[frozenset[str]] = _NAMED

    @field_validator("output", mode="before", json_schema_input_type=str | list[Any])
    @classmethod
    def _output(cls, value: object) -> object:
        if not isinstance(value, (str, list)):
            raise ValueError("a string, or a list of text parts")
        return value


class ReasoningItem(Body):
    """The model's reasoning, sent back."""

    type: Literal["reasoning"]
    content: Annotated[list[Any], Checked((ReasoningText,))] = Field(default_factory=list)

    without_effect: ClassVar[frozenset[str]] = _NAMED
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"summary": ([],), "encrypted_content": ()}


class FunctionTool(Body):
    """One of `tools`."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False  # arguments are of the schema


class FunctionChoice(Body):
    """A `tool_choice` that names a tool."""

    type: Literal["function"]
    name: str


class TextOptions(Body):
    """What the text is to be."""

    format: dict[str, Any] | None = None

    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"verbosity": ("medium",)}


class ReasoningOptions(Body):
    """How much the model reasons, as far as its chat template has that."""

    effort: Effort | None = None

    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"summary": (), "generate_summary": ()}


class ResponseBody(Body):
    """Body of /v1/responses. The fields below `metadata` are extensions."""

    model: str = DEFAULT_NAME
    input: Annotated[
        str | list[Any],
        Checked((MessageItem, CallItem, CallOutputItem, ReasoningItem)),
        Field(min_length=1),
    ]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool = False
    background: bool = False
    store: bool = True
    include: list[Literal["message.output_text.logprobs"]] = Field(default_factory=list)
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    temperature: Float | None = None
    top_p: Float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Any], Checked((FunctionTool,))] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    reasoning: Annotated[dict[str, Any] | None, Checked((ReasoningOptions,))] = None
    text: Annotated[dict[str, Any] | None, Checked((TextOptions,))] = None
    metadata: dict[str, str] = Field(default_factory=dict)
    seed: Int | None = None
    top_k: Int | None = None
    min_p: Float | None = None
    ignore_eos: bool = False
    thinking_budget: Budget | None = None  # tokens
    priority: Priority = 0
    cache_salt: str = ""

    without_effect: ClassVar[frozenset[str]] = LABELS - {"metadata"}
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "truncation": ("disabled",),
        "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
        "conversation": (),
        "prompt": (),
        "max_tool_calls": (),
        "context_management": (),
        "moderation": (),
        "prompt_cache_options": (),
        "access_programs": (),
        "background_options": (),
        "image": (),
    }


class ResponseQuery(Query):
    """Query of GET /v1/responses/{id}."""

    stream: bool = False
    starting_after: Annotated[int, Field(ge=0)] | None = None

    without_effect: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"include": ()}


class ItemsQuery(Query):
    """Query of GET /v1/responses/{id}/input_items."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None

    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"include": ()}
