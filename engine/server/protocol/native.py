"""Bodies of SGLang's routes: /generate, /tokenize, /detokenize, /abort_request."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from ...errors import RequestError
from ...request import SamplingParams
from .base import Body, Float, Int, Priority, parse
from .grammar import GrammarBody, read_grammar
from .openai import IdsInput, Message, read_prompts
from .sampling import LogitBias, StopStrings
from .schema import Checked

# fields of /generate that are one value or a list -> its type, and what an error calls it
_ONE_OR_MANY: dict[str, tuple[type, str]] = {
    "text": (str, "a string"),
    "sampling_params": (dict, "an object"),
    "return_logprob": (bool, "true or false"),
    "top_logprobs_num": (int, "an integer"),
    "logprob_start_len": (int, "an integer"),
    "rid": (str, "a string"),
}


# SamplingParams' fields that /generate has outside of `sampling_params` -> their names there
LOGPROB_NAMES = {
    "logprobs": "top_logprobs_num",
    "logprob_token_ids": "token_ids_logprob",
    "prompt_logprobs": "top_logprobs_num",
    "prompt_logprob_start": "logprob_start_len",
}


class Logprobs(NamedTuple):
    """The log probabilities that one prompt asks for, by the names of `SamplingParams`."""

    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    prompt_logprob_start: int = 0


class GenerateSampling(GrammarBody):
    """`sampling_params` of /generate, in SGLang's names."""

    max_new_tokens: Int = 128
    min_new_tokens: Int = 0
    temperature: Float | None = None
    top_k: Int | None = None
    top_p: Float | None = None
    min_p: Float | None = None
    frequency_penalty: Float = 0.0
    presence_penalty: Float = 0.0
    repetition_penalty: Float | None = None
    logit_bias: LogitBias = Field(default_factory=dict)
    sampling_seed: Int | None = None
    stop: StopStrings = Field(default_factory=list)
    stop_token_ids: list[Int] = Field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    n: Int = 1

    # how often SGLang's scheduler sends; every step is sent here, which a client sees sooner
    without_effect: ClassVar[frozenset[str]] = frozenset({"stream_interval"})
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "stop_regex": ([], ""),
        "spaces_between_special_tokens": (True,),
        "custom_params": ({},),
    }


class GenerateBody(Body):
    """Body of /generate: `text` or `input_ids`, one or a list."""

    text: str | list[str] | None = None
    input_ids: list[Any] | None = None
    sampling_params: Annotated[dict[str, Any] | list[dict[str, Any]], Checked((GenerateSampling,))] = Field(
        default_factory=dict
    )
    stream: bool = False
    return_logprob: bool | list[bool] = False
    top_logprobs_num: Int | list[Int] = 0
    logprob_start_len: Int | list[Int] = -1
    token_ids_logprob: list[Int] | list[list[Int]] = Field(default_factory=list)
    return_text_in_logprobs: bool = False
    rid: str | list[str] | None = None
    priority: Priority = 0
    extra_key: str = ""

    # they tell SGLang what to write into its logs
    without_effect: ClassVar[frozenset[str]] = frozenset({"log_metrics", "no_logs", "custom_labels"})
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "input_embeds": (),
        "image_data": ([], ""),
        "video_data": ([], ""),
        "audio_data": ([], ""),
        "modalities": ([],),
        "return_hidden_states": (False,),
        "return_routed_experts": (False,),
        "return_entropy": (False,),
        "return_bytes": (False,),
        "session_params": ({},),
        "lora_path": ("",),
        "custom_logit_processor": ("",),
        "background": (False,),
    }

    @field_validator(*_ONE_OR_MANY, mode="before")
    @classmethod
    def _one_or_many(cls, value: object, info: ValidationInfo) -> object:
        kind, name = _ONE_OR_MANY[info.field_name or ""]
        items = value if isinstance(value, list) else [value]
        if not items or not all(type(each) is kind for each in items):
            raise ValueError(f"{name}, or a list of such, one for each prompt")
        return value

    @field_validator("token_ids_logprob", mode="before")
    @classmethod
    def _ids_or_many(cls, value: object) -> object:
        lists = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        if not all(isinstance(ids, list) and all(type(each) is int for each in ids) for ids in lists):
            raise ValueError("a list of token ids, or a list of such, one for each prompt")
        return value

    @field_validator("input_ids", mode="before", json_schema_input_type=IdsInput)
    @classmethod
    def _ids(cls, value: object) -> object:
        prompts = read_prompts(value)
        if isinstance(prompts[0], str):
            raise ValueError("a list of token ids, or a list of such lists")
        return value


def read_sampling(
    data: object, where: str, defaults: Mapping[str, float | int], logprobs: Logprobs
) -> SamplingParams:
    """The engine's parameters for one `sampling_params` object at the JSON path `where`."""
    body = parse(GenerateSampling, data, where)
    given = body.model_dump(exclude_unset=True, exclude=set(GrammarBody.model_fields))
    grammar, _ = read_grammar(body, where + ".")
    fields: dict[str, Any] = {
        name: value for name, value in defaults.items() if name in GenerateSampling.model_fields
    }
    fields |= given
    fields["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    try:
        return SamplingParams(**logprobs._asdict(), grammar=grammar, **fields)
    except RequestError as error:
        name = LOGPROB_NAMES.get(error.field or "", f"{where}.{error.field}")
        text = str(error).replace(error.field or "", name, 1)
        raise RequestError(text, name, error.status) from None


class TokenizeBody(Body):
    """Body of /tokenize: `prompt` or `messages`."""

    prompt: str | None = None
    messages: Annotated[list[Any] | None, Checked((Message,)), Field(min_length=1)] = None
    model: str = "default"
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"return_token_strs": (False,)}


class DetokenizeBody(Body):
    """Body of /detokenize."""

    tokens: list[Int]
    model: str = "default"
    skip_special_tokens: bool = True


class AbortBody(Body):
    """Body of /abort_request: a request's id, or everything."""

    rid: str = ""
    abort_all: bool = False
