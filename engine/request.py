"""What a user asked for (`SamplingParams`, `Request`) and what has come back so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .grammar.grammar import GrammarSpec, Matcher
from .radix_cache import RadixNode

MAX_LOGIT_BIAS = 300  # entries per request, as OpenAI allows
MAX_STOP_TOKEN_IDS = 16  # with the bias entries, these bound the sampler's scatter (see batch.py)
MAX_TOP_LOGPROBS = 20
MAX_LOGPROB_TOKEN_IDS = 64  # of one request: each is looked up in every wanted position's logits
MAX_N = 128
MAX_INT = 2**63 - 1  # of what has no other bound: what can be sent to the engine's process


class RequestStatus(IntEnum):
    """Where a request stands. Preemption returns a running request to WAITING."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


class FinishReason(StrEnum):
    """Why a request ended, in OpenAI's words where OpenAI has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request's tokens are chosen and when it ends. Field names are SGLang's.

    `temperature` 0 is greedy. `top_k` -1 keeps the whole vocabulary. `logprobs` None returns none,
    0 the chosen token's, k also the k likeliest; they are of the model's own distribution, before
    temperature and penalties. `prompt_logprobs` likewise, of the prompt's tokens after the one at
    `prompt_logprob_start`. `logprob_token_ids` are given with both, whatever their rank.
    `max_new_tokens` None runs to the end of the context; 0 only scores the prompt.
    `embed` asks for the prompt's embedding in place of text (see `pooling.EMBED`).
    `sampling_seed` fixes the text for a prompt whatever else is in the batch.
    `grammar` is what the output has to match; the end of a text that may not go on ends it, even before
    `min_new_tokens` and with `ignore_eos`.

    Raises RequestError, naming the field, for a value that cannot be honoured.
    """

    max_new_tokens: int | None = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    sampling_seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprob_start: int = 0
    logprob_token_ids: tuple[int, ...] = ()
    embed: bool = False
    grammar: GrammarSpec | None = field(default=None, metadata={"flag": False})  # has flags of its own

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logprob_token_ids", tuple(self.logprob_token_ids))
        if self.max_new_tokens is not None:
            _check_int("max_new_tokens", self.max_new_tokens, 0 if self.scores_prompt else 1, None)
        _check_int("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        _check_float("temperature", self.temperature, 0.0, 100.0)
        if self.top_k != -1:
            _check_int("top_k", self.top_k, 1, None, hint="-1 (off) or at least 1")
        _check_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 2.0, open_low=True)
        _check_int("n", self.n, 1, MAX_N)
        if self.sampling_seed is not None:
            _check_int("sampling_seed", self.sampling_seed, -(2**63), 2**64 - 1)
        if self.embed and (self.max_new_tokens, self.n) != (1, 1):
            raise RequestError("embed is true; accepted is that with max_new_tokens 1 and n 1", "embed")
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        elif self.logprob_token_ids and not self.scores_prompt:
            text = "logprob_token_ids is given; it is accepted only with logprobs or prompt_logprobs"
            raise RequestError(text, "logprob_token_ids")
        self._check_prompt_logprobs()
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} entries; at most {MAX_LOGIT_BIAS} are accepted",
                "logit_bias",
            )
        for token, bias in self.logit_bias.items():
            _check_int("logit_bias", token, 0, None, hint="token ids as keys")
            _check_float("logit_bias", bias, -100.0, 100.0)
        _check_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        _check_ids("logprob_token_ids", self.logprob_token_ids, MAX_LOGPROB_TOKEN_IDS)
        if self.grammar is not None and not isinstance(self.grammar, GrammarSpec):
            raise RequestError(f"grammar is {self.grammar!r:.80}; accepted is a GrammarSpec", "grammar")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError(
                    f"stop has the entry {text!r}; only non-empty strings are accepted", "stop"
                )

    def _check_prompt_logprobs(self) -> None:
        _check_int("prompt_logprob_start", self.prompt_logprob_start, 0, None)
        if self.prompt_logprobs is not None:
            _check_int("prompt_logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
        elif self.prompt_logprob_start:
            raise RequestError(
                f"prompt_logprob_start is {self.prompt_logprob_start}; it is accepted only with"
                " prompt_logprobs",
                "prompt_logprob_start",
            )
        if self.embed and self.scores_prompt:
            raise RequestError("embed is true; accepted is that without prompt_logprobs", "prompt_logprobs")

    @property
    def scores_prompt(self) -> bool:
        """Whether log probabilities of the prompt are wanted."""
        return self.prompt_logprobs is not None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def reshapes_logits(self) -> bool:
        """Whether logits change before the choice: penalties, biases or a minimum length."""
        return bool(
            self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
            or self.min_new_tokens
        )


def _check_int(name: str, value: object, low: int | None, high: int | None, hint: str | None = None) -> None:
    most = MAX_INT if high is None else high
    good = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if good and (low is None or value >= low) and value <= most:  # type: ignore[operator]
        return
    if hint is None:
        bounds = [f"at least {low}"] if low is not None else []
        bounds += [f"at most {most}"] if high is not None or good else []
        hint = "an integer of " + " and ".join(bounds)
    raise RequestError(f"{name} is {value!r:.80}; accepted is {hint}", name)


def _check_ids(name: str, ids: tuple[int, ...], most: int) -> None:
    if len(ids) > most:
        raise RequestError(f"{name} has {len(ids)} entries; at most {most} are accepted", name)
    for token in ids:
        _check_int(name, token, 0, None, hint="token ids")


def _check_float(name: str, value: object, low: float, high: float, open_low: bool = False) -> None:
    good = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
    if good and math.isfinite(value) and low <= value <= high and not (open_low and value == low):  # type: ignore[arg-type, operator]
        return
    lowest = f"above {low:g}" if open_low else f"from {low:g}"
    raise RequestError(f"{name} is {value!r}; accepted is a number {lowest} to {high:g}", name)


@dataclass(slots=True, kw_only=True)
class TokenLogprobs:
    """The chosen token's log probability, the likeliest alternatives, best first, and those asked for."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]
    asked: list[float] = field(default_factory=list)  # of params.logprob_token_ids, in their order


@dataclass(slots=True, eq=False)
class Request:
    """One sequence on its way through the engine.

    The caller fills the first group; the scheduler alone writes the second. Token counts:

        |------------- prompt -------------|---- output ----|~ in flight ~|
        |-- cached --|                     num_prompt_tokens             num_tokens
        |------------ num_computed_tokens (scheduled to have KV) ----|

    `pages[i]` holds the KV of tokens `[i * page_size, (i + 1) * page_size)`. The first
    `num_tree_pages` belong to the radix tree, locked through `node`; the rest are the request's own.
    """

    id: str
    prompt_ids: NDArray[np.int32]
    params: SamplingParams
    seed: int = 0  # uint32; from params.sampling_seed, or drawn when the request is made
    eos_token_ids: frozenset[int] = frozenset()
    priority: int = 0  # higher runs first under the priority policy
    extra_key: str = ""  # separates prefixes that must not be shared: adapter, cache salt
    parent_id: str | None = None  # set when n > 1 made several requests of one
    arrival_time: float = 0.0  # time.monotonic()
    matcher: Matcher | None = None  # set before it is queued if params.grammar is

    status: RequestStatus = RequestStatus.WAITING
    finish_reason: FinishReason | None = None
    matched_stop: int | str | None = None
    output_ids: list[int] = field(default_factory=list)
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    num_tree_pages: int = 0
    node: RadixNode | None = None
    num_computed_tokens: int = 0
    num_in_flight: int = 0  # tokens sampled on the device and not yet seen by the host
    num_foreseen: int = 0  # tokens that the device still samples and the host has taken already
    num_cached_tokens: int = 0  # prefix found in the cache when first admitted
    queue_seconds: float = 0.0  # from arrival to when it was first admitted
    num_preemptions: int = 0
    turn: int = -1  # place in order of arrival; -1 until it is queued
    hidden_sum: NDArray[np.floating] | None = None  # of the first num_pooled_tokens, or the last of them
    num_pooled_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # that were not told yet
    num_scored: int = 0  # prompt logprobs so far
    embedding: bytes | None = None  # float32, once the prompt is computed, if it is asked for
    whole: bool = False  # every token has to be computed, none taken from the cache
    output_limit: int = 0  # output tokens that it may reach
    last_position: int = 0  # of the last of these, which is never computed: nothing follows it
    stop_set: frozenset[int] = frozenset()  # eos_token_ids, unless ignored, and params.stop_token_ids
    page_ids: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))  # `pages` as an array

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens, those in flight counted."""
        return len(self.prompt_ids) + len(self.output_ids) + self.num_in_flight

    def known_tokens(self, start: int = 0, end: int | None = None) -> NDArray[np.int32]:
        """Prompt and output tokens `[start, end)`, those in flight not among them."""
        num_prompt = len(self.prompt_ids)
        if not self.output_ids or (end is not None and end <= num_prompt):
            return self.prompt_ids[start:end]
        return np.concatenate((self.prompt_ids, np.array(self.output_ids, np.int32)))[start:end]

    @property
    def finished(self) -> bool:
        return self.status == RequestStatus.FINISHED
