"""Choosing a token from logits in Triton, without sorting.

The vocabulary of a row is cut into chunks that programs scan side by side. Where a row asks for top-k
or top-p, they first count how many tokens, and how much probability, lie within a few distances below
the likeliest; the tokens of the least distance that holds enough are gathered, and one program finds
the cut among them by bisection. Where too many tokens are as likely, it does so over the whole row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import OPTIONS

_CHUNK = 4096  # tokens that one program scans
_WARPS = 8
_CANDIDATES = 8192  # that are gathered at most
_HALVINGS = 48  # of a distance of at most 128: 2**-41, finer than two different scaled logits lie apart


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row, the first of equals: [rows, vocab] to int32 [rows]."""
    tops, top_ids = _chunk_results(logits)
    _scan[tops.shape](logits, tops, top_ids, logits.stride(0), **_scanning(logits))
    return _pick_all(tops, top_ids)


def choose_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    indices: Tensor,
) -> Tensor:
    """One token id for each row, int32 [rows]; arguments and result as in `torch_ref.py`."""
    (rows, vocab), stride, device = logits.shape, logits.stride(0), logits.device
    tops, top_ids = _chunk_results(logits)
    counts = torch.empty(*tops.shape, 8, dtype=torch.int32, device=device)
    masses = torch.empty(*tops.shape, 8, dtype=torch.float32, device=device)
    candidates = torch.empty(rows, _CANDIDATES, dtype=logits.dtype, device=device)
    cuts = torch.empty(rows, 4, dtype=torch.float32, device=device)
    scanning = _scanning(logits)
    chunks = triton.next_power_of_2(tops.shape[1])
    _scan[tops.shape](logits, tops, top_ids, stride, **scanning)
    _tally[tops.shape](
        logits, tops, temperature, top_k, top_p, counts, masses, stride, CHUNKS=chunks, **scanning
    )
    _gather[tops.shape](
        logits, tops, temperature, top_k, top_p, counts, masses, candidates, cuts, stride, CHUNKS=chunks,
        CANDIDATES=_CANDIDATES, **scanning,
    )  # fmt: skip
    _cut[(rows,)](
        logits, candidates, temperature, top_k, top_p, min_p, cuts, stride, VOCAB=vocab,
        CANDIDATES=_CANDIDATES, HALVINGS=_HALVINGS, num_warps=16, **OPTIONS,
    )  # fmt: skip
    _draw[tops.shape](logits, cuts, temperature, seeds, indices, tops, top_ids, stride, **scanning)
    return _pick_all(tops, top_ids)


def _scanning(logits: Tensor) -> dict[str, int | bool]:
    """How the kernels are compiled that take a chunk each."""
    return {"VOCAB": logits.shape[1], "CHUNK": _CHUNK, "num_warps": _WARPS, **OPTIONS}


def _chunk_results(logits: Tensor) -> tuple[Tensor, Tensor]:
    """A value and a token id for each row's chunks."""
    shape = logits.shape[0], triton.cdiv(logits.shape[1], _CHUNK)
    tops = torch.empty(shape, dtype=torch.float32, device=logits.device)
    return tops, torch.empty(shape, dtype=torch.int32, device=logits.device)


def _pick_all(tops: Tensor, top_ids: Tensor) -> Tensor:
    rows, chunks = tops.shape
    token_ids = torch.empty(rows, dtype=torch.int32, device=tops.device)
    _pick[(rows,)](
        tops, top_ids, token_ids, chunks, CHUNKS=triton.next_power_of_2(chunks), num_warps=1, **OPTIONS
    )
    return token_ids


@triton.jit
def _scan(logits, tops, top_ids, stride, VOCAB: tl.constexpr, CHUNK: tl.constexpr):
    """The largest logit of one chunk, and whose it is."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * stride + at, mask=at < VOCAB, other=float("-inf"))
    top, index = tl.max(x.to(tl.float32), 0, return_indices=True)
    result = row * tl.num_programs(1) + chunk
    tl.store(tops + result, top)
    tl.store(top_ids + result, chunk * CHUNK + index)


@triton.jit
def _pick(tops, top_ids, token_ids, chunks, CHUNKS: tl.constexpr):
    """The best of a row's chunks; the first of equals."""
    row = tl.program_id(0)
    at = tl.arange(0, CHUNKS)
    x = tl.load(tops + row * chunks + at, mask=at < chunks, other=float("-inf"))
    _, index = tl.max(x, 0, return_indices=True)
    index = tl.minimum(index, chunks - 1)  # of values that are no numbers any may be called the best
    tl.store(token_ids + row, tl.load(top_ids + row * chunks + index))


@triton.jit
def _below(x, at, length, top, scale):
    """How far x[at] times `scale` lie below the largest, float32 from 0; infinitely from `length` on."""
    value = tl.load(x + at, mask=at < length, other=float("-inf"))
    return (top - value.to(tl.float32)) * scale


@triton.jit
def _distances():
    """The distances below the likeliest token that are counted: 128, beyond which a probability is 0 in
    float32, then 16, 8, ... 1/4."""
    index = tl.arange(0, 8)
    return tl.where(index == 0, 128.0, tl.exp2(5.0 - index))


@triton.jit
def _asks_for_cut(temperature, top_k, top_p, row, VOCAB: tl.constexpr):
    tokens = tl.load(top_k + row)
    return (tl.load(temperature + row) > 0) & (((tokens > 0) & (tokens < VOCAB)) | (tl.load(top_p + row) < 1))


@triton.jit
def _largest(tops, row, chunks, CHUNKS: tl.constexpr):
    """The row's largest logit, from those of its chunks."""
    at = tl.arange(0, CHUNKS)
    return tl.max(tl.load(tops + row * chunks + at, mask=at < chunks, other=float("-inf")), 0)


@triton.jit
def _tally(
    logits, tops, temperature, top_k, top_p, counts, masses, stride,
    CHUNKS: tl.constexpr, VOCAB: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """How many tokens of one chunk lie within each distance, and the sum of their exp(-below)."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    if _asks_for_cut(temperature, top_k, top_p, row, VOCAB):
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        top = _largest(tops, row, tl.num_programs(1), CHUNKS)
        below = _below(logits + row.to(tl.int64) * stride, at, VOCAB, top, 1 / tl.load(temperature + row))
        within = below[None, :] <= _distances()[:, None]
        to = (row * tl.num_programs(1) + chunk) * 8 + tl.arange(0, 8)
        tl.store(counts + to, tl.sum(within.to(tl.int32), 1))
        tl.store(masses + to, tl.sum(tl.where(within, tl.exp(-below)[None, :], 0.0), 1))


@triton.jit
def _gather(
    logits, tops, temperature, top_k, top_p, counts, masses, candidates, cuts, stride,
    CHUNKS: tl.constexpr, CANDIDATES: tl.constexpr, VOCAB: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Choose the least distance that holds what top-k, or without it top-p, keeps; copy one chunk's logits
    within it if they are few. `cuts` gets (largest logit, distance, tokens within it or -1, sum of all)."""
    row, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    top = _largest(tops, row, chunks, CHUNKS)
    distance, number, mass = 128.0 + 0.0 * top, -1.0 + 0.0 * top, 0.0 * top
    if _asks_for_cut(temperature, top_k, top_p, row, VOCAB):
        part = tl.arange(0, CHUNKS)[:, None]
        at = (row * chunks + part) * 8 + tl.arange(0, 8)[None, :]
        count = tl.load(counts + at, mask=part < chunks, other=0)
        total = tl.sum(count, 0)
        total_mass = tl.sum(tl.load(masses + at, mask=part < chunks, other=0.0), 0)
        nothing_less = tl.arange(0, 8) == 0
        mass = tl.sum(tl.where(nothing_less, total_mass, 0.0), 0)
        tokens = tl.load(top_k + row)
        by_count = (tokens > 0) & (tokens < VOCAB)
        enough = nothing_less | tl.where(by_count, total >= tokens, total_mass >= tl.load(top_p + row) * mass)
        chosen = tl.arange(0, 8) == tl.sum(enough.to(tl.int32), 0) - 1
        distance = tl.sum(tl.where(chosen, _distances(), 0.0), 0)
        kept = tl.sum(tl.where(chosen, total, 0), 0)
        number = kept.to(tl.float32)
        if kept <= CANDIDATES:
            token = chunk * CHUNK + tl.arange(0, CHUNK)
            line = logits + row.to(tl.int64) * stride
            near = _below(line, token, VOCAB, top, 1 / tl.load(temperature + row)) <= distance
            before = tl.sum(tl.sum(tl.where((part < chunk) & chosen[None, :], count, 0), 1), 0)
            to = candidates + row * CANDIDATES + before + tl.cumsum(near.to(tl.int32), 0) - 1
            tl.store(to, tl.load(line + token, mask=token < VOCAB, other=0.0), mask=near)
    if chunk == 0:
        tl.store(cuts + row * 4, top)
        tl.store(cuts + row * 4 + 1, distance)
        tl.store(cuts + row * 4 + 2, number)
        tl.store(cuts + row * 4 + 3, mass)


@triton.jit
def _within(x, length, top, scale, distance, BLOCK: tl.constexpr):
    """How many of x lie no farther than `distance` below the largest, and the sum of their exp(-below)."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for first in range(0, length, BLOCK):
        below = _below(x, first + tl.arange(0, BLOCK), length, top, scale)
        near = below <= distance
        count += near.to(tl.int32)
        mass += tl.where(near, tl.exp(-below), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _least_distance(
    x, length, top, scale, distance, tokens, mass, BLOCK: tl.constexpr, HALVINGS: tl.constexpr
):  # fmt: skip
    """The least distance, no more than `distance`, within which lie `tokens` tokens and a sum of `mass`; a
    little more is returned where no token lies between."""
    count, _ = _within(x, length, top, scale, distance, BLOCK)
    low, low_count = 0.0 * distance - 1.0, 0 * count  # within `low` is too little, within `distance` enough
    turn = 0
    # done when one token lies between, which is the last one kept, or when no fewer tokens would do
    while (turn < HALVINGS) & (count - low_count > 1) & (count > tokens):
        middle = (tl.maximum(low, 0.0) + distance) / 2
        middle_count, middle_mass = _within(x, length, top, scale, middle, BLOCK)
        enough = (middle_count >= tokens) & (middle_mass >= mass)
        low = tl.where(enough, low, middle)
        low_count = tl.where(enough, low_count, middle_count)
        distance = tl.where(enough, middle, distance)
        count = tl.where(enough, middle_count, count)
        turn += 1
    return distance


@triton.jit
def _cut(
    logits, candidates, temperature, top_k, top_p, min_p, cuts, stride,
    VOCAB: tl.constexpr, CANDIDATES: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """How far below a row's likeliest token the last one lies that may be drawn, in place of `_gather`'s
    distance."""
    row = tl.program_id(0)
    warmth = tl.load(temperature + row)
    if warmth > 0:
        top = tl.load(cuts + row * 4)
        distance = tl.load(cuts + row * 4 + 1)
        number = tl.load(cuts + row * 4 + 2).to(tl.int32)
        if number >= 0:
            x = logits + row.to(tl.int64) * stride
            length = VOCAB + 0 * number
            if number <= CANDIDATES:
                x = candidates + row.to(tl.int64) * CANDIDATES
                length = number
            mass = tl.load(cuts + row * 4 + 3)
            scale = 1 / warmth
            tokens = tl.load(top_k + row)
            if (tokens > 0) & (tokens < VOCAB):
                distance = _least_distance(x, length, top, scale, distance, tokens, 0.0, CANDIDATES, HALVINGS)
                _, mass = _within(x, length, top, scale, distance, CANDIDATES)
            probability = tl.load(top_p + row)
            if probability < 1:
                mass *= probability
                distance = _least_distance(x, length, top, scale, distance, 1, mass, CANDIDATES, HALVINGS)
        tl.store(cuts + row * 4 + 1, tl.minimum(distance, -tl.log(tl.load(min_p + row))))


@triton.jit
def _mix(words):
    """32-bit words, each to another that looks random: MurmurHash3's last step. Appleby 2011."""
    words = (words ^ (words >> 16)) * 0x85EBCA6B
    words = (words ^ (words >> 13)) * 0xC2B2AE35
    return words ^ (words >> 16)


@triton.jit
def _draw(
    logits, cuts, temperature, seeds, indices, tops, top_ids, stride, VOCAB: tl.constexpr, CHUNK: tl.constexpr
):
    """The largest of one chunk's kept scaled logits plus Gumbel noise, as `torch_ref.py` defines it, and
    whose it is. Of a greedy row `_scan`'s results stay."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    warmth = tl.load(temperature + row)
    if warmth > 0:
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        below = _below(logits + row.to(tl.int64) * stride, at, VOCAB, tl.load(cuts + row * 4), 1 / warmth)
        seed = _mix(tl.load(seeds + row).to(tl.uint32, bitcast=True))
        index = _mix(tl.load(indices + row).to(tl.uint32, bitcast=True) + 0x9E3779B9)
        words = _mix(_mix(at.to(tl.uint32) * 0x9E3779B9 + seed) ^ index)
        uniform = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2**-23
        noisy = -tl.log(-tl.log(uniform)) - below
        noisy = tl.where(below <= tl.load(cuts + row * 4 + 1), noisy, float("-inf"))
        best, best_index = tl.max(noisy, 0, return_indices=True)
        result = row * tl.num_programs(1) + chunk
        tl.store(tops + result, best)
        tl.store(top_ids + result, chunk * CHUNK + best_index)
