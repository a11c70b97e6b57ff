"""The sampling fields that OpenAI's two routes share, and their way to `SamplingParams`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from ...errors import RequestError
from ...request import SamplingParams
from .base import Body, Float, Int, Priority, parse, shorten
from .grammar import OpenAIGrammarBody, read_grammar
from .schema import Checked

DEFAULT_NAME = "default"  # always means the served model
MAX_STOP = 16  # stop strings per request; OpenAI takes 4

# SamplingParams' name -> the name in OpenAI's requests, where they differ
_OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}

# generation_config.json gives defaults for these
_DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def _check_stop(value: object) -> object:
    """`stop` as a list of strings, from a string or a list. Raises ValueError saying what is accepted."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(each, str) and each for each in items):
        raise ValueError("a string that is not empty, or a list of such")
    if len(items) > MAX_STOP:
        raise ValueError(f"a list of at most {MAX_STOP} strings")
    return items


def _check_bias(value: dict[str, float]) -> dict[str, float]:
    """`value`, if its keys are token ids. Raises ValueError saying what is accepted."""
    for key in value:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError(f"an object whose keys are token ids, which {shorten(key)} is not")
    return value


StopStrings = Annotated[list[str], BeforeValidator(_check_stop, json_schema_input_type=str | list[str])]
Budget = Annotated[int, Field(ge=0, le=2**31 - 1)]
LogitBias = Annotated[dict[str, Float], AfterValidator(_check_bias)]


class StreamOptions(Body):
    """What a stream carries beside the text."""

    include_usage: bool = False  # at its end
    continuous_usage_stats: bool = False  # in each event
    without_effect: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})


class SamplingBody(OpenAIGrammarBody):
    """Fields of /v1/completions and /v1/chat/completions alike. Those below `seed` are extensions."""

    model: str = DEFAULT_NAME
    stream: bool = False
    stream_options: Annotated[dict[str, Any] | None, Checked((StreamOptions,))] = None
    n: Int = 1
    temperature: Float | None = None
    top_p: Float | None = None
    frequency_penalty: Float = 0.0
    presence_penalty: Float = 0.0
    logit_bias: LogitBias = Field(default_factory=dict)
    stop: StopStrings = Field(default_factory=list)
    seed: Int | None = None
    top_k: Int | None = None
    min_p: Float | None = None
    repetition_penalty: Float | None = None
    min_tokens: Int = 0
    stop_token_ids: list[Int] = Field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    priority: Priority = 0
    cache_salt: str = ""
    extra_key: str = ""
    rid: str | None = None


def read_stream_options(body: SamplingBody) -> StreamOptions:
    """The stream options of `body`. Raises RequestError when there are some without a stream."""
    if body.stream_options is None:
        return StreamOptions()
    if not body.stream:
        raise RequestError("stream_options is given; it is accepted only with stream true", "stream_options")
    return parse(StreamOptions, body.stream_options, "stream_options")


def cache_key(body: SamplingBody) -> str:
    """What separates this request's cached prefixes from others'."""
    return f"{body.extra_key}\0{body.cache_salt}" if body.cache_salt else body.extra_key


def sampling_params(
    body: SamplingBody,
    defaults: Mapping[str, float | int],
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The engine's parameters for `body`; `defaults` fill what it leaves open.

    Raises RequestError in OpenAI's names.
    """
    given = {name: getattr(body, name) for name in _DEFAULTED}
    given |= {
        "max_new_tokens": max_tokens,
        "min_new_tokens": body.min_tokens,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "logit_bias": {int(token): bias for token, bias in body.logit_bias.items()},
        "sampling_seed": body.seed,
        "stop": tuple(body.stop),
        "stop_token_ids": tuple(body.stop_token_ids),
        "ignore_eos": body.ignore_eos,
        "skip_special_tokens": body.skip_special_tokens,
        "no_stop_trim": body.no_stop_trim,
        "n": body.n,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "grammar": read_grammar(body)[0],
    }
    return make_params(given, defaults, _OPENAI_NAMES)


def make_params(
    given: Mapping[str, Any], defaults: Mapping[str, float | int], names: Mapping[str, str]
) -> SamplingParams:
    """The engine's parameters for those that are `given`; None is one that is not.

    `defaults` fill what is open, but for `max_new_tokens`, which is then unlimited. Raises RequestError in
    the client's words, which `names` has where they are not SamplingParams'.
    """
    fields: dict[str, Any] = {name: value for name, value in defaults.items() if name in _DEFAULTED}
    fields |= {name: value for name, value in given.items() if value is not None}
    try:
        return SamplingParams(**{"max_new_tokens": None, **fields})
    except RequestError as error:
        raise _rename(error, names) from None


def _rename(error: RequestError, names: Mapping[str, str]) -> RequestError:
    name = names.get(error.field or "")
    if name is None or error.field is None:
        return error
    return RequestError(str(error).replace(error.field, name, 1), name, error.status)
