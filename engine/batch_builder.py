"""Turns the scheduler's plan of a step into a `ScheduleBatch`: vectorised, no loop over tokens or pages."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .batch import F32, I32, SamplingArrays, SamplingVariant, ScheduleBatch
from .prompt_logprobs import scored_positions
from .request import Request, SamplingParams
from .shared_prefixes import SharedPages

MAX_FORBIDDEN = 20  # ids that a minimum length forbids, per row; bounds the sampler's scatter

_NO_IDS: I32 = np.empty(0, np.int32)
_NO_VALUES: F32 = np.empty(0, np.float32)
_NOTHING_ASKED: I32 = np.empty((0, 0), np.int32)


class Chunk(NamedTuple):
    """Known tokens `[start, end)` of a request, to be prefilled in this step."""

    request: Request
    start: int
    end: int

    @property
    def samples(self) -> bool:
        """Whether it reaches the last token, whose logits give the next one."""
        return self.end == self.request.num_tokens

    @property
    def scored(self) -> range:
        """Its positions whose logits tell how likely the prompt's next token was, where that is wanted."""
        return scored_positions(self.request, self.start, self.end)


class SamplingTable:
    """What stays the same of a running request's sampling, one row per token slot; a step gathers from it.

    The row after the last is neutral: that of positions whose token is given.
    """

    def __init__(self, num_slots: int) -> None:
        self.spare_slot = num_slots
        num_slots += 1
        self.temperature = np.zeros(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int32)
        self.top_p = np.ones(num_slots, np.float32)
        self.min_p = np.zeros(num_slots, np.float32)
        self.seeds = np.zeros(num_slots, np.uint32)
        self.frequency_penalty = np.zeros(num_slots, np.float32)
        self.presence_penalty = np.zeros(num_slots, np.float32)
        self.repetition_penalty = np.ones(num_slots, np.float32)
        self.prompt_lens = np.zeros(num_slots, np.int32)
        self.variant = np.zeros(num_slots, np.int32)
        self.constrained = np.zeros(num_slots, np.bool_)
        self.embeds = np.zeros(num_slots, np.bool_)
        self.bias_ids = [_NO_IDS] * num_slots
        self.bias_values = [_NO_VALUES] * num_slots
        self.forbidden = [_NO_IDS] * num_slots
        self.asked_ids = [_NO_IDS] * num_slots
        self.variant[self.spare_slot] = SamplingVariant.FULL

    def bind(self, slot: int, request: Request) -> None:
        """Fill the row of `slot` for its new owner."""
        params = request.params
        self.temperature[slot] = 0.0 if params.greedy else params.temperature
        self.top_k[slot] = 0 if params.top_k == -1 else min(params.top_k, 2**31 - 1)
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.seeds[slot] = request.seed
        self.frequency_penalty[slot] = params.frequency_penalty
        self.presence_penalty[slot] = params.presence_penalty
        self.repetition_penalty[slot] = params.repetition_penalty
        self.prompt_lens[slot] = request.num_prompt_tokens
        self.variant[slot] = _variant(params)
        self.constrained[slot] = request.matcher is not None
        self.embeds[slot] = params.embed
        bias = params.logit_bias
        self.bias_ids[slot] = np.fromiter(bias.keys(), np.int32, len(bias))
        self.bias_values[slot] = np.fromiter(bias.values(), np.float32, len(bias))
        self.forbidden[slot] = _forbidden(request)
        self.asked_ids[slot] = np.array(params.logprob_token_ids, np.int32)

    def gather(
        self, rows: Sequence[Request], slots: I32, indices: I32, given_ids: I32
    ) -> tuple[SamplingArrays, SamplingVariant]:
        """The arrays for requests `rows` [L] in `slots` [L], and the variant that they need."""
        variant = SamplingVariant(int(self.variant[slots].max(initial=0)))
        bias_rows, bias_ids, bias_values, asked_ids = _NO_IDS, _NO_IDS, _NO_VALUES, _NOTHING_ASKED
        if variant == SamplingVariant.FULL:
            bias_rows, bias_ids, bias_values = self._biases(rows, slots)
            asked_ids = self._asked(rows)
        arrays = SamplingArrays(
            slots=slots,
            temperature=self.temperature[slots],
            top_k=self.top_k[slots],
            top_p=self.top_p[slots],
            min_p=self.min_p[slots],
            seeds=self.seeds[slots],
            indices=indices,
            frequency_penalty=self.frequency_penalty[slots],
            presence_penalty=self.presence_penalty[slots],
            repetition_penalty=self.repetition_penalty[slots],
            prompt_lens=self.prompt_lens[slots],
            bias_rows=bias_rows,
            bias_ids=bias_ids,
            bias_values=bias_values,
            asked_ids=asked_ids,
            given_ids=given_ids,
        )
        return arrays, variant

    def _asked(self, rows: Sequence[Request]) -> I32:
        """[L, K] the ids that each row asks the logprobs of, the shorter filled up with 0."""
        asked = [self.asked_ids[request.slot] for request in rows]
        most = max(map(len, asked), default=0)
        if not most:
            return _NOTHING_ASKED
        ids = np.zeros((len(rows), most), np.int32)
        for row, own in zip(ids, asked, strict=True):
            row[: len(own)] = own
        return ids

    def _biases(self, rows: Sequence[Request], slots: I32) -> tuple[I32, I32, F32]:
        """Bias entries of all rows: logit_bias, and -inf for ids that a minimum length forbids."""
        counts, ids, values = [], [_NO_IDS], [_NO_VALUES]
        for request, slot in zip(rows, slots.tolist(), strict=True):
            own, forbidden = self.bias_ids[slot], _NO_IDS
            if len(request.output_ids) + request.num_in_flight < request.params.min_new_tokens:
                forbidden = self.forbidden[slot]
            counts.append(len(own) + len(forbidden))
            ids += (own, forbidden)
            values += (self.bias_values[slot], np.full(len(forbidden), -np.inf, np.float32))
        bias_rows = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
        return bias_rows, np.concatenate(ids), np.concatenate(values)


def build_batch(
    step: int, decode: Sequence[Request], chunks: Sequence[Chunk], table: SamplingTable, page_size: int,
    shared: SharedPages,
) -> ScheduleBatch:  # fmt: skip
    """The batch of one step. Call it before the requests' counts are advanced.

    Each row's `page_ids` must cover exactly its tokens, those of this step included.
    """
    rows = (*decode, *(chunk.request for chunk in chunks))
    starts = _i32([request.num_computed_tokens for request in decode] + [chunk.start for chunk in chunks])
    kv_lens = starts + 1
    kv_lens[len(decode) :] = [chunk.end for chunk in chunks]
    q_lens = kv_lens - starts
    cu_q_lens = _offsets(q_lens)
    page_offsets = _offsets((kv_lens + (page_size - 1)) // page_size)
    page_indices = np.concatenate([request.page_ids for request in rows])

    slots = _i32([request.slot for request in rows])
    newest = -1 - slots[: len(decode)]  # whether the host has seen them or not
    pieces = [newest, *(chunk.request.known_tokens(chunk.start, chunk.end) for chunk in chunks)]
    token_ids = np.concatenate(pieces) if chunks else pieces[0]
    if chunks:
        positions = np.arange(len(token_ids), dtype=np.int32)
        positions += np.repeat(starts - cu_q_lens[:-1], q_lens)
        first_pages = np.repeat(page_offsets[:-1], q_lens)
    else:
        positions, first_pages = starts, page_offsets[:-1]
    pages, offsets = np.divmod(positions, np.int32(page_size))
    kv_slots = page_indices[first_pages + pages] * np.int32(page_size) + offsets

    sampling_chunks = [index for index, chunk in enumerate(chunks, len(decode)) if chunk.samples]
    sampled = rows if len(sampling_chunks) == len(chunks) else (*decode, *(rows[i] for i in sampling_chunks))
    logits_rows = np.arange(len(sampled), dtype=np.int32)
    logits_rows[len(decode) :] = sampling_chunks
    at, ends = cu_q_lens[1:][logits_rows] - 1, kv_lens[logits_rows]
    wanted = _Wanted(at, ends, logits_rows, slots[logits_rows], _NO_IDS)
    if any(chunk.scored for chunk in chunks):
        wanted = _with_scored(wanted, chunks, cu_q_lens, table.spare_slot)
        sampled = tuple(rows[i] for i in wanted.rows.tolist())
    sampling, variant = table.gather(sampled, wanted.slots, wanted.indices, wanted.given_ids)
    return ScheduleBatch(
        step=step,
        rows=rows,
        sampled=sampled,
        variant=variant,
        num_decode_rows=len(decode),
        token_ids=token_ids,
        positions=positions,
        kv_slots=kv_slots,
        cu_q_lens=cu_q_lens,
        kv_lens=kv_lens,
        page_indices=page_indices,
        page_offsets=page_offsets,
        logits_positions=wanted.at,
        logits_rows=wanted.rows,
        constrained=np.flatnonzero(table.constrained[wanted.slots]).astype(np.int32),
        sampling=sampling,
        pooled=np.flatnonzero(table.embeds[slots]).astype(np.int32),
        **shared._asdict(),
    )


class _Wanted(NamedTuple):
    """The L positions whose logits are wanted."""

    at: I32  # [L] into the flat token axis
    indices: I32  # [L] position of the token that follows
    rows: I32  # [L]
    slots: I32  # [L]
    given_ids: I32  # [L], or empty


def _with_scored(sampled: _Wanted, chunks: Sequence[Chunk], cu_q_lens: I32, spare_slot: int) -> _Wanted:
    """The positions that sample and those of `chunks`, the last rows, that are scored, in the order of the
    token axis."""
    at, indices, rows = [sampled.at], [sampled.indices], [sampled.rows]
    given = [np.full(len(sampled.rows), -1, np.int32)]
    for row, chunk in enumerate(chunks, len(cu_q_lens) - 1 - len(chunks)):
        following = np.arange(chunk.scored.start + 1, chunk.scored.stop + 1, dtype=np.int32)
        at.append(following - 1 - chunk.start + cu_q_lens[row])
        indices.append(following)
        rows.append(np.full(len(following), row, np.int32))
        given.append(chunk.request.prompt_ids[following])
    slots = np.full(sum(map(len, at)), spare_slot, np.int32)
    slots[: len(sampled.slots)] = sampled.slots
    all_at = np.concatenate(at)
    order = np.argsort(all_at)
    joined = [np.concatenate(each)[order] for each in (indices, rows, given)]
    return _Wanted(all_at[order], joined[0], joined[1], slots[order], joined[2])


def _i32(values: list[int]) -> I32:
    return np.array(values, np.int32)


def _offsets(lengths: I32) -> I32:
    """[0, l0, l0 + l1, ...]"""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _variant(params: SamplingParams) -> SamplingVariant:
    if params.reshapes_logits or params.logprobs is not None:
        return SamplingVariant.FULL
    return SamplingVariant.GREEDY if params.greedy else SamplingVariant.SAMPLE


def _forbidden(request: Request) -> I32:
    """Ids that would end the request, its own stop ids before the model's; at most MAX_FORBIDDEN."""
    if not request.params.min_new_tokens:
        return _NO_IDS
    own = dict.fromkeys(request.params.stop_token_ids)
    ids = [*own, *sorted(request.stop_set - own.keys())]
    return _i32(ids[:MAX_FORBIDDEN])
