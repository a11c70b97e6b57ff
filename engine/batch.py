"""`ScheduleBatch`: the host's plan for one step, in plain numpy.

A step has a flat token axis: T tokens of S rows, decode rows first (one token each), then prefill
chunks. Of these T positions, L want logits; each of the L yields one token: sampled, or given where a
prompt is scored. Backends turn a ScheduleBatch into their ForwardBatch: on the device, padded to a bucket.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from .request import Request, TokenLogprobs

I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]


class SamplingVariant(IntEnum):
    """Which sampler a step needs; each includes the ones before, so mixed rows take the highest."""

    GREEDY = 0  # argmax
    SAMPLE = 1  # temperature, top-k, top-p, min-p
    FULL = 2  # penalties, logit bias, minimum length, logprobs


@dataclass(frozen=True, slots=True)
class SamplingArrays:
    """How the L wanted positions are sampled. `bias_*` are empty unless the variant is FULL."""

    slots: I32  # [L] token slot that receives the token; the one after the last if it is given
    temperature: F32  # [L] 0 is greedy
    top_k: I32  # [L] 0 keeps the whole vocabulary
    top_p: F32  # [L] 1 is off
    min_p: F32  # [L] 0 is off
    seeds: U32  # [L] the request's seed
    # position of the token being sampled; (seed, index) alone decides the randomness of a row
    indices: I32  # [L]
    frequency_penalty: F32  # [L]
    presence_penalty: F32  # [L]
    repetition_penalty: F32  # [L]
    prompt_lens: I32  # [L] tokens before this count for repetition only
    bias_rows: I32  # [B] index into L
    bias_ids: I32  # [B]
    bias_values: F32  # [B] -inf forbids the token (minimum length)
    # [L, K] ids whose logprobs are wanted, rows with fewer filled up with 0; empty if no row wants any
    asked_ids: I32 = field(default_factory=lambda: np.empty((0, 0), np.int32))
    # [L] the token that a prompt gives at a position in its middle, -1 to sample one; empty if none is given
    given_ids: I32 = field(default_factory=lambda: np.empty(0, np.int32))


@dataclass(frozen=True, slots=True)
class ScheduleBatch:
    """One step's work. Immutable once scheduled; arrays must not be written by anyone after.

    `token_ids` holds ids, or `-(slot + 1)` for the token that an earlier step sampled into `slot`, which
    the host may not have seen. `kv_slots` are flat pool positions, `page * page_size + offset`.
    `page_indices[page_offsets[s]:page_offsets[s + 1]]` are the pages of row s, in order, covering
    `kv_lens[s]` tokens, which include the tokens of this step.
    """

    step: int
    rows: tuple[Request, ...]  # S
    sampled: tuple[Request, ...]  # L: the request that each wanted position is of
    variant: SamplingVariant
    num_decode_rows: int  # the first rows, of one token each
    token_ids: I32  # [T]
    positions: I32  # [T]
    kv_slots: I32  # [T]
    cu_q_lens: I32  # [S + 1]
    kv_lens: I32  # [S]
    page_indices: I32  # [P]
    page_offsets: I32  # [S + 1]
    logits_positions: I32  # [L] into the flat token axis, ascending
    logits_rows: I32  # [L] into the rows
    constrained: I32  # [C] into the wanted positions: those whose token a mask bounds
    sampling: SamplingArrays
    pooled: I32 = field(default_factory=lambda: np.empty(0, np.int32))  # rows whose hidden states are wanted
    # both empty if nothing is shared; what they say is in the tables too, and a backend need not look at it
    group_rows: I32 = field(default_factory=lambda: np.empty(0, np.int32))  # [D] see `SharedPages`
    shared_pages: I32 = field(default_factory=lambda: np.empty(0, np.int32))  # [D]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StepTokens:
    """What a step brought: tokens in the order of `ScheduleBatch.sampled`. Logprobs only for FULL."""

    token_ids: I32  # [L]
    logprobs: F32 | None = None  # [L]
    top_ids: I32 | None = None  # [L, MAX_TOP_LOGPROBS]
    top_logprobs: F32 | None = None  # [L, MAX_TOP_LOGPROBS]
    asked_logprobs: F32 | None = None  # [L, K or more] of `SamplingArrays.asked_ids`, if there are any
    pooled: F32 | None = None  # [S, embed] of each row, if any is wanted: see `pooling`

    def logprobs_of(self, index: int, num_top: int, num_asked: int) -> TokenLogprobs:
        """Those of one token, with so many alternatives, and of so many tokens that were asked for."""
        assert self.logprobs is not None and self.top_ids is not None and self.top_logprobs is not None
        asked = []
        if num_asked:
            assert self.asked_logprobs is not None
            asked = self.asked_logprobs[index, :num_asked].tolist()
        return TokenLogprobs(
            logprob=float(self.logprobs[index]),
            top_ids=self.top_ids[index, :num_top].tolist(),
            top_logprobs=self.top_logprobs[index, :num_top].tolist(),
            asked=asked,
        )
