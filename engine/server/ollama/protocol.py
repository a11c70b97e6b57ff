"""Bodies of Ollama's routes."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from ...request import MAX_TOP_LOGPROBS
from ..protocol.base import Body, Float, Int
from ..protocol.sampling import DEFAULT_NAME, StopStrings
from ..protocol.schema import Checked
from ..protocol.tools import Tool


class OllamaOptions(Body):
    """`options`: how tokens are chosen."""

    temperature: Float | None = None
    top_k: Int | None = None
    top_p: Float | None = None
    min_p: Float | None = None
    repeat_penalty: Float | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None
    seed: Int | None = None
    num_predict: Annotated[int, Field(ge=-2)] = -1
    num_ctx: Annotated[int, Field(ge=2)] | None = None
    stop: StopStrings = Field(default_factory=list)

    # How Ollama loads a model, what it keeps when it shortens a prompt (none is shortened here), and
    # parameters of mirostat, which is off.
    without_effect: ClassVar[frozenset[str]] = frozenset(
        "numa num_batch num_gpu main_gpu low_vram f16_kv use_mmap use_mlock num_thread num_keep"
        " mirostat_tau mirostat_eta".split()
    )
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "repeat_last_n": (-1,),  # penalties look at the whole text
        "mirostat": (0,),
        "tfs_z": (1, 1.0),
        "typical_p": (1, 1.0),
        "penalize_newline": (True,),
        "logits_all": (False,),
        "vocab_only": (False,),
        "embedding_only": (False,),
    }


_LEVELS = ("low", "medium", "high")


def _check_think(value: object) -> object:
    if not isinstance(value, bool) and (not isinstance(value, str) or value not in _LEVELS):
        raise ValueError('true, false, "low", "medium" or "high"')
    return value


def _check_format(value: object) -> object:
    if not isinstance(value, dict) and value not in ("", "json"):
        raise ValueError('"", "json", or a JSON schema, which is an object')
    return value


class OllamaBody(Body):
    """Fields of /api/generate and /api/chat alike."""

    model: str = DEFAULT_NAME
    stream: bool = True
    options: Annotated[dict[str, Any], Checked((OllamaOptions,))] = Field(default_factory=dict)
    think: Annotated[bool | Literal["low", "medium", "high"] | None, BeforeValidator(_check_think)] = None
    format: Annotated[Literal["", "json"] | dict[str, Any], BeforeValidator(_check_format)] = ""
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    without_effect: ClassVar[frozenset[str]] = frozenset({"keep_alive"})  # the model stays
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "truncate": (False,),
        "shift": (False,),
    }


class OllamaGenerateBody(OllamaBody):
    """Body of /api/generate. Without a prompt nothing is generated: Ollama's clients load a model so."""

    prompt: str = ""
    system: str = ""
    raw: bool = False

    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **OllamaBody.only_at,
        "suffix": ("",),
        "template": ("",),
        "context": ([],),
        "images": ([],),
        "width": (0,),
        "height": (0,),
        "steps": (0,),
    }


class OllamaFunction(Body):
    """What a call of a message calls."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)

    without_effect: ClassVar[frozenset[str]] = frozenset({"index", "description"})  # an answer's, sent back


class OllamaCall(Body):
    """One of a message's `tool_calls`."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Annotated[dict[str, Any], Checked((OllamaFunction,))]


class OllamaMessage(Body):
    """One message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    tool_calls: Annotated[list[Any], Checked((OllamaCall,))] = Field(default_factory=list)
    tool_name: str | None = None
    tool_call_id: str | None = None

    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"images": ([],)}


class OllamaChatBody(OllamaBody):
    """Body of /api/chat. Without messages nothing is generated: Ollama's clients load a model so."""

    messages: Annotated[list[Any], Checked((OllamaMessage,))] = Field(default_factory=list)
    tools: Annotated[list[Any], Checked((Tool,))] = Field(default_factory=list)


class ShowBody(Body):
    """Body of /api/show; `name` is an older word for `model`."""

    model: str | None = None
    name: str | None = None

    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "verbose": (False,),
        "system": ("",),
        "template": ("",),
        "options": ({},),
    }


class OllamaError(BaseModel):
    """The answer of every status from 400 on, and the last line of a stream that broke off."""

    error: str
