"""Bodies of /v1/completions and /v1/chat/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ...errors import RequestError
from ...request import MAX_N, MAX_TOP_LOGPROBS
from .base import Body, Int, parse, shorten
from .sampling import Budget, SamplingBody
from .schema import Checked
from .tools import Tool, ToolCall, read_tool_call

# Labels for accounting, and hints to OpenAI's own machines: none reaches the model.
LABELS = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"}
)

# Extensions that vLLM's and SGLang's clients send.
_EXTENSIONS: dict[str, tuple[object, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1.0, 1),
    "include_stop_str_in_output": (False,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "add_special_tokens": (True,),
    "return_token_ids": (False,),
    "return_hidden_states": (False,),
    "stop_regex": (),
    "lora_path": ("",),
    "logit_processors": ([],),
    "custom_params": (),
}

Prompt = str | list[int]
_Ids = Annotated[list[int], Field(min_length=1)]
IdsInput = Annotated[list[int] | list[_Ids], Field(min_length=1)]
PromptInput = Annotated[str | list[str] | list[int] | list[_Ids], Field(min_length=1)]


class CompletionBody(SamplingBody):
    """Body of /v1/completions."""

    prompt: list[Any]
    max_tokens: Int = 16
    logprobs: Int | None = None
    prompt_logprobs: Int | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    echo: bool = False
    suffix: str = ""

    without_effect: ClassVar[frozenset[str]] = LABELS
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **_EXTENSIONS,
    }

    @field_validator("prompt", mode="before", json_schema_input_type=PromptInput)
    @classmethod
    def _prompts(cls, value: object) -> list[Prompt]:
        return read_prompts(value)


def read_prompts(value: object) -> list[Prompt]:
    """The prompts, each a text or a list of token ids. Raises ValueError saying what is accepted."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return value
        if _is_ids(value):
            return [value]
        if all(isinstance(each, list) and each and _is_ids(each) for each in value):
            return value
    raise ValueError("a string, a list of strings, a list of token ids, or a list of such lists; none empty")


def _is_ids(items: list[Any]) -> bool:
    # type(), for True is an int to isinstance; the bound keeps a huge integer from the int32 arrays
    return all(type(each) is int and -(2**31) <= each < 2**31 for each in items)


class TextPart(Body):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[Any], Checked((TextPart,))] = ""
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[Any] | None, Checked((ToolCall,))] = None
    reasoning_content: str | None = None
    prefix: bool = False  # DeepSeek's: this last message is the beginning of the answer

    without_effect: ClassVar[frozenset[str]] = frozenset({"annotations"})  # an answer's, sent back
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "refusal": (),
        "audio": (),
        "function_call": (),
    }

    @field_validator("content", mode="before")
    @classmethod
    def _content(cls, value: object) -> object:
        if not isinstance(value, (str, list)):
            raise ValueError("a string, or a list of text parts")
        return value


class ChatBody(SamplingBody):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Any], Checked((Message,)), Field(min_length=1)]
    max_tokens: Int | None = None
    max_completion_tokens: Int | None = None
    logprobs: bool = False
    prompt_logprobs: Int | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    add_generation_prompt: bool | None = None  # None: unless the last message is continued
    continue_final_message: bool = False
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    thinking_budget: Budget | None = None  # tokens
    thinking_token_budget: Budget | None = None  # vLLM's name for it
    separate_reasoning: bool = True
    stream_reasoning: bool = True
    tools: Annotated[list[Any], Checked((Tool,))] = Field(default_factory=list)
    tool_choice: Annotated[str | dict[str, Any] | None, Checked((Tool,))] = None
    parallel_tool_calls: bool = True

    without_effect: ClassVar[frozenset[str]] = LABELS
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **_EXTENSIONS,
        "store": (False,),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "verbosity": ("medium",),
        "echo": (False,),
        "best_of": (1,),
        "chat_template": (),
        "documents": ([],),
    }


def read_messages(items: list[Any], where: str = "messages") -> list[dict[str, Any]]:
    """Messages as a chat template takes them: text parts joined by newlines, nulls left out.

    Raises RequestError naming the message and field, images and sound included.
    """
    messages = []
    for index, item in enumerate(items):
        path = f"{where}[{index}]"
        if isinstance(item, dict) and item.get("role") != "assistant" and item.get("content") is None:
            raise RequestError(f"{path}.content is missing", f"{path}.content")
        message = parse(Message, item, path)
        if message.prefix and (index + 1 < len(items) or message.role != "assistant"):
            text = "accepted is true only of the last message, with the role assistant"
            raise RequestError(f"{path}.prefix is true; {text}", f"{path}.prefix")
        fields = message.model_dump(exclude_none=True, exclude={"tool_calls", "prefix"})
        if message.tool_calls:
            fields["tool_calls"] = _calls_of(message, path)
        if isinstance(message.content, list):
            parts = enumerate(message.content)
            fields["content"] = "\n".join(_text_of(part, f"{path}.content[{k}]") for k, part in parts)
        messages.append(fields)
    return messages


def _calls_of(message: Message, path: str) -> list[dict[str, Any]]:
    path += ".tool_calls"
    if message.role != "assistant":
        raise RequestError(f"{path} is given; it is accepted only of the role assistant", path)
    return [read_tool_call(each, f"{path}[{k}]") for k, each in enumerate(message.tool_calls or [])]


def _text_of(part: object, path: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise RequestError(
            f'{path}.type is {shorten(kind)}; this model reads text, accepted is "text"', f"{path}.type"
        )
    return parse(TextPart, part, path).text


def continues(body: ChatBody) -> bool:
    """Whether the answer goes on where the last message ends. Raises RequestError where it cannot."""
    last = body.messages[-1]
    by_prefix = isinstance(last, dict) and last.get("prefix") is True
    if not (body.continue_final_message or by_prefix):
        return False
    field = "messages[-1].prefix" if by_prefix else "continue_final_message"
    if body.add_generation_prompt:
        raise RequestError(
            f"add_generation_prompt is true, as is {field}; accepted is one of them", "add_generation_prompt"
        )
    if not isinstance(last, dict) or not last.get("content"):
        raise RequestError(f"{field} is true; it is accepted only with text in the last message", field)
    return True
