"""`RequestBuilder`: a prompt and its parameters to the engine's requests, everything checked."""

import random
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .request import Request, SamplingParams
from .runner import ModelInfo
from .text.tokenizer import Tokenizer

MAX_STOP_STRINGS = 64  # each is looked for in every character of the output
MAX_STOP_CHARACTERS = 4096  # of one stop string

Prompt = str | Sequence[int] | NDArray[np.integer]


def default_params(info: ModelInfo) -> dict[str, float | int]:
    """The model's own values for sampling parameters that the caller leaves unset, by field name."""
    return dict(info.default_sampling)


class RequestBuilder:
    """Makes requests. May be used from several threads, as long as each prompt is of one."""

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer | None, random_seed: int | None = None) -> None:
        """`random_seed` fixes the seeds of requests that bring none. Without a tokenizer, prompts are ids."""
        self._info = info
        self._tokenizer = tokenizer
        self._random = random.Random(random_seed)

    def build(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        extra_key: str = "",
        add_special_tokens: bool = True,
    ) -> list[Request]:
        """The `params.n` requests for one prompt.

        A single request has the id `request_id`; several have "<request_id>-<i>" and it as their parent.
        `add_special_tokens` is False for text that has them already, as a chat template's.
        Raises RequestError, naming the field.
        """
        self._check_params(params)
        ids = self.prompt_ids(prompt, add_special_tokens)
        base = params.sampling_seed if params.sampling_seed is not None else self._random.getrandbits(64)
        alone = params.n == 1
        return [
            Request(
                id=request_id if alone else f"{request_id}-{index}",
                prompt_ids=ids,
                params=params,
                seed=child_seed(base, index),
                eos_token_ids=self._info.eos_token_ids,
                priority=priority,
                extra_key=extra_key,
                parent_id=None if alone else request_id,
                arrival_time=time.monotonic(),
            )
            for index in range(params.n)
        ]

    def prompt_ids(self, prompt: Prompt, add_special_tokens: bool = True) -> NDArray[np.int32]:
        """The prompt as int32 token ids, its length and ids checked. Raises RequestError."""
        if isinstance(prompt, str):
            prompt = self._encode(prompt, add_special_tokens)
        ids = _as_array(prompt, self._info.vocab_size)
        if not len(ids):
            raise RequestError("the prompt is empty; accepted is at least one token", "prompt")
        most = self._info.context_length - 1
        if len(ids) > most:
            raise RequestError(
                f"the prompt has {len(ids)} tokens and the context length is {self._info.context_length};"
                f" accepted are at most {most} tokens, so that one can be generated",
                "prompt",
            )
        return ids

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self._tokenizer is None:
            raise RequestError(
                "the prompt is text, but skip_tokenizer_init is set; accepted are token ids", "prompt"
            )
        return self._tokenizer.encode(text, add_special_tokens, self._info.context_length - 1)

    def _check_params(self, params: SamplingParams) -> None:
        if params.stop and self._tokenizer is None:
            raise RequestError(
                "stop is set, but so is skip_tokenizer_init; accepted are stop_token_ids", "stop"
            )
        if params.grammar is not None and self._tokenizer is None:
            raise RequestError(
                f"{params.grammar.kind} is given, but skip_tokenizer_init is set, and a grammar needs a"
                " tokenizer",
                params.grammar.kind,
            )
        if len(params.stop) > MAX_STOP_STRINGS:
            raise RequestError(
                f"stop has {len(params.stop)} strings; accepted are at most {MAX_STOP_STRINGS}", "stop"
            )
        if any(len(text) > MAX_STOP_CHARACTERS for text in params.stop):
            longest = max(map(len, params.stop))
            raise RequestError(
                f"stop has a string of {longest} characters; accepted are at most {MAX_STOP_CHARACTERS}",
                "stop",
            )
        for field in ("logit_bias", "stop_token_ids", "logprob_token_ids"):
            ids = getattr(params, field)
            if any(index >= self._info.vocab_size for index in ids):
                raise RequestError(_out_of_vocabulary(field, max(ids), self._info.vocab_size), field)


def _as_array(ids: Sequence[int] | NDArray[np.integer], vocab_size: int) -> NDArray[np.int32]:
    """[tokens] int32. Raises RequestError (field "prompt") for what is no token id."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise RequestError(
                f"the prompt is an array of {ids.dtype} and shape {ids.shape}; accepted are text and one row"
                " of integers",
                "prompt",
            )
        values = ids
    else:
        if not isinstance(ids, Sequence) or isinstance(ids, (bytes, bytearray)):
            raise RequestError(
                f"the prompt is {type(ids).__name__}; accepted are text and a list of token ids", "prompt"
            )
        for number, index in enumerate(ids):
            if not isinstance(index, (int, np.integer)) or isinstance(index, bool):
                raise RequestError(
                    f"the prompt has {index!r:.80} at place {number}; accepted are token ids", "prompt"
                )
            if not 0 <= index < vocab_size:
                raise RequestError(_out_of_vocabulary("the prompt", int(index), vocab_size), "prompt")
        values = np.array(ids, np.int64)
    for extreme in (values.min(), values.max()) if len(values) else ():
        if not 0 <= extreme < vocab_size:
            raise RequestError(_out_of_vocabulary("the prompt", int(extreme), vocab_size), "prompt")
    return np.ascontiguousarray(values, np.int32)


def _out_of_vocabulary(what: str, index: int, vocab_size: int) -> str:
    return f"{what} has the token id {index}; accepted are 0 to {vocab_size - 1}"


def child_seed(base: int, index: int) -> int:
    """The uint32 seed of the `index`-th of n sequences: SplitMix64's output number `index` from `base`.

    So the n texts differ, they are the same whenever `base` is, and the first does not depend on n.
    """
    mask = 2**64 - 1
    value = (base + (index + 1) * 0x9E3779B97F4A7C15) & mask
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
    return (value ^ (value >> 31)) >> 32
