"""Choosing a token from logits in Triton, without sorting.

The vocabulary of a row is cut into chunks that programs scan side by side. Where a row asks for top-k
or top-p, one program finds how far below the likeliest token the cut lies, by bisection: a pass over
the row each, ending when the cut separates exactly what it must.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import OPTIONS

_CHUNK = 4096  # tokens that one program scans
_WARPS = 8
_FARTHEST = 128.0  # below the likeliest token; exp(-104) is 0 in float32
_HALVINGS = 48  # of 128: 2**-41, finer than two different scaled logits lie apart


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
    (rows, vocab), stride = logits.shape, logits.stride(0)
    tops, top_ids = _chunk_results(logits)
    cuts = torch.empty(rows, 2, dtype=torch.float32, device=logits.device)
    chunks = triton.next_power_of_2(tops.shape[1])
    _scan[tops.shape](logits, tops, top_ids, stride, **_scanning(logits))
    _cut[(rows,)](
        logits, tops, temperature, top_k, top_p, min_p, cuts, stride, tops.shape[1], VOCAB=vocab,
        CHUNK=_CHUNK, CHUNKS=chunks, FARTHEST=_FARTHEST, HALVINGS=_HALVINGS, num_warps=16, **OPTIONS,
    )  # fmt: skip
    _draw[tops.shape](logits, cuts, temperature, seeds, indices, tops, top_ids, stride, **_scanning(logits))
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
    tl.store(token_ids + row, tl.load(top_ids + row * chunks + index))


@triton.jit
def _below(logits, row, at, temperature, top, stride, VOCAB: tl.constexpr):
    """How far logits / temperature lie below the largest, float32 from 0 to infinity."""
    x = tl.load(logits + row.to(tl.int64) * stride + at, mask=at < VOCAB, other=float("-inf"))
    return top - x.to(tl.float32) / temperature


@triton.jit
def _within(
    logits, row, temperature, top, stride, bar, VOCAB: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """How many tokens lie no farther than `bar` below the likeliest, and the sum of their exp(-below)."""
    count = tl.zeros([CHUNK], tl.int32)
    mass = tl.zeros([CHUNK], tl.float32)
    for first in range(0, VOCAB, CHUNK):
        below = _below(logits, row, first + tl.arange(0, CHUNK), temperature, top, stride, VOCAB)
        kept = below <= bar
        count += kept.to(tl.int32)
        mass += tl.where(kept, tl.exp(-below), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _nearest_bar(
    logits, row, temperature, top, stride, bar, tokens, probability,
    VOCAB: tl.constexpr, CHUNK: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """The least bar, no more than `bar`, within which lie `tokens` tokens and `probability` of what lies
    within `bar`; a little more is returned where no token lies between."""
    count, mass = _within(logits, row, temperature, top, stride, bar, VOCAB, CHUNK)
    wanted = mass * probability
    low, low_count = 0.0 * bar - 1.0, 0 * count  # within `low` is too little, within `bar` enough
    turn = 0
    # done when one token lies between, which is the last one kept, or when no fewer tokens would do
    while (turn < HALVINGS) & (count - low_count > 1) & (count > tokens):
        middle = (tl.maximum(low, 0.0) + bar) / 2
        middle_count, middle_mass = _within(logits, row, temperature, top, stride, middle, VOCAB, CHUNK)
        enough = (middle_count >= tokens) & (middle_mass >= wanted)
        low = tl.where(enough, low, middle)
        low_count = tl.where(enough, low_count, middle_count)
        bar = tl.where(enough, middle, bar)
        count = tl.where(enough, middle_count, count)
        turn += 1
    return bar


@triton.jit
def _cut(
    logits, tops, temperature, top_k, top_p, min_p, cuts, stride, chunks,
    VOCAB: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, FARTHEST: tl.constexpr,
    HALVINGS: tl.constexpr,
):  # fmt: skip
    """A row's largest scaled logit, and how far below it the last token lies that may be drawn."""
    row = tl.program_id(0)
    at = tl.arange(0, CHUNKS)
    top = tl.max(tl.load(tops + row * chunks + at, mask=at < chunks, other=float("-inf")), 0)
    warmth = tl.load(temperature + row)
    if warmth > 0:
        top = top / warmth
        bar = FARTHEST + 0.0 * top
        tokens = tl.load(top_k + row)
        if (tokens > 0) & (tokens < VOCAB):
            bar = _nearest_bar(logits, row, warmth, top, stride, bar, tokens, 0.0, VOCAB, CHUNK, HALVINGS)
        probability = tl.load(top_p + row)
        if probability < 1:
            bar = _nearest_bar(logits, row, warmth, top, stride, bar, 1, probability, VOCAB, CHUNK, HALVINGS)
        tl.store(cuts + row * 2, top)
        tl.store(cuts + row * 2 + 1, tl.minimum(bar, -tl.log(tl.load(min_p + row))))


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
        below = _below(logits, row, at, warmth, tl.load(cuts + row * 2), stride, VOCAB)
        seed = _mix(tl.load(seeds + row).to(tl.uint32, bitcast=True))
        index = _mix(tl.load(indices + row).to(tl.uint32, bitcast=True) + 0x9E3779B9)
        words = _mix(_mix(at.to(tl.uint32) * 0x9E3779B9 + seed) ^ index)
        uniform = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2**-23
        noisy = -tl.log(-tl.log(uniform)) - below
        noisy = tl.where(below <= tl.load(cuts + row * 2 + 1), noisy, float("-inf"))
        best, best_index = tl.max(noisy, 0, return_indices=True)
        result = row * tl.num_programs(1) + chunk
        tl.store(tops + result, best)
        tl.store(top_ids + result, chunk * CHUNK + best_index)
