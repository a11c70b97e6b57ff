"""Prefill chunks' part of ragged paged attention in Triton: FlashAttention's loop (Dao 2023) over pages. The
query heads of one KV head stand side by side as rows of the matrix product."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..tuning import OPTIONS, Target, measured
from .rows import RaggedRows
from .triton_tile import NO_WINDOW, lanes_for, load_tile, scores_of, stages, start_softmax, weigh


class PrefillSizes(NamedTuple):
    """How prefill attention is compiled."""

    rows: int  # of the matrix product: queries times the heads of a group
    tile: int  # keys met in one turn
    num_warps: int
    num_stages: int


def prefill_sizes(target: Target, head_dim: int, kv_bytes: int) -> PrefillSizes:
    """As measured, else the largest tiles whose sums stay in registers: larger ones where the matrix unit
    reads its operands from shared memory, as it does from Hopper on. A Hopper core has room for two programs
    of half as many queries, of which one computes weights while the other's products run."""
    found = measured(target, "prefill_attention", head_dim=head_dim, kv_bytes=kv_bytes)
    if found:
        return PrefillSizes(**found)
    wide_head = head_dim * max(kv_bytes, 2) > 256
    from_shared = target.architecture in ("sm_90", "sm_100", "sm_103")
    two_programs = target.architecture == "sm_90" and not wide_head
    rows = 128 if (from_shared or not wide_head) and not two_programs else 64
    tile = 64 if from_shared and not wide_head else 32
    ahead = 1 if target.is_amd else 2
    queries = 0 if target.is_amd else rows * head_dim * max(kv_bytes, 2)
    buffers = ahead + 1 if from_shared else ahead  # one is read while the others fill
    while tile > 16 and queries + buffers * tile * 2 * head_dim * kv_bytes > target.shared_bytes - 1024:
        tile //= 2
    return PrefillSizes(rows, tile, num_warps=4 if two_programs else 8, num_stages=stages(ahead))


def launch_prefill(
    q: Tensor, kv_pages: Tensor, out: Tensor, sinks: Tensor, rows: RaggedRows, layer: dict[str, Any],
    target: Target,
) -> None:  # fmt: skip
    """Attend for all rows but the decode rows. `layer`: what every kernel is told of the layer."""
    sizes = prefill_sizes(target, q.shape[2], kv_pages.element_size())
    prefill_rows = rows.num_rows - rows.num_decode_rows
    query_rows = max(sizes.rows, triton.next_power_of_2(layer["GROUP"]))
    queries = query_rows // layer["GROUP"]
    tiles = (q.shape[0] - rows.num_decode_rows) // queries + prefill_rows  # no fewer than are needed
    _prefill[(layer["KV_HEADS"], tiles)](
        q, kv_pages, out, sinks, rows.cu_q_lens, rows.kv_lens, rows.page_indices, rows.page_offsets,
        first_row=rows.num_decode_rows, num_rows=rows.num_rows, **layer, ROWS=lanes_for(prefill_rows),
        QUERIES=queries, QUERY_ROWS=query_rows, TILE=sizes.tile, WINDOWED=layer["window"] < NO_WINDOW,
        num_warps=sizes.num_warps, num_stages=sizes.num_stages, **OPTIONS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_row", "num_rows", "first_page", "window"])
def _prefill(
    q, kv, out, sinks, cu_q_lens, kv_lens, page_indices, page_offsets,
    first_row, num_rows, first_page, window, inner, factor, v_scale, q_stride,
    SOFT_CAP: tl.constexpr, SINKS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, QUERIES: tl.constexpr, QUERY_ROWS: tl.constexpr, TILE: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    """One tile of a chunk's queries, for one KV head. The last tiles, which see most, go first."""
    head = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    # chunk r begins at this tile, which leaves each chunk as many as it can need
    lane = tl.arange(0, ROWS)
    starts = tl.load(cu_q_lens + first_row + lane, mask=first_row + lane < num_rows, other=0)
    begins = tl.where(first_row + lane < num_rows, (starts - first_row) // QUERIES + lane, 1 << 30)
    chunk = tl.sum((begins <= tile).to(tl.int32), 0) - 1
    row = first_row + chunk
    start = tl.load(cu_q_lens + row)
    count = tl.load(cu_q_lens + row + 1) - start
    offset = (tile - (start - first_row) // QUERIES - chunk) * QUERIES
    if offset < count:
        length = tl.load(kv_lens + row)
        lines = tl.arange(0, QUERY_ROWS)
        dims = tl.arange(0, DIM_PAD)
        token = offset + lines // GROUP
        live = (lines < QUERIES * GROUP) & (token < count)
        heads = head * GROUP + lines % GROUP
        inside = live[:, None] & (dims < HEAD_DIM)[None, :]
        query = q + (start + token).to(tl.int64)[:, None] * q_stride + heads[:, None] * HEAD_DIM + dims
        first = length - count + offset  # position of the tile's first query
        top, total = start_softmax(sinks, heads, live, True, QUERY_ROWS, SINKS)
        total, acc = _prefill_keys(
            tl.load(query, mask=inside, other=0.0), kv, page_indices, tl.load(page_offsets + row), head,
            first, tl.minimum(first + QUERIES, length), first + lines // GROUP, top, total,
            first_page, window, inner, factor, SOFT_CAP, KV_HEADS, HEAD_DIM, DIM_PAD, PAGE_SIZE,
            PRECISION, QUERY_ROWS, TILE, WINDOWED,
        )  # fmt: skip
        attended = acc / tl.where(live, total, 1.0)[:, None] * v_scale  # other lines may have seen no key
        to = out + ((start + token).to(tl.int64) * (KV_HEADS * GROUP) + heads)[:, None] * HEAD_DIM + dims
        tl.store(to, attended.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _prefill_keys(
    query, kv, page_indices, table, head, first, end, query_at, top, total,
    first_page, window, inner, factor,
    SOFT_CAP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr, PRECISION: tl.constexpr, QUERY_ROWS: tl.constexpr, TILE: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    """A query tile's softmax over its keys. Those that all queries see, nearly all of a long row, have a loop
    of their own, which masks nothing; a window's few have one that masks everything."""
    acc = tl.zeros([QUERY_ROWS, DIM_PAD], tl.float32)
    if WINDOWED:
        cut = tl.maximum(first - window + 1, 0) // TILE
    else:
        cut = (first + 1) // TILE
        top, total, acc = _prefill_tiles(
            0, cut, query, kv, page_indices, table, head, end, query_at, top, total, acc,
            first_page, window, inner, factor, SOFT_CAP, KV_HEADS, HEAD_DIM, DIM_PAD, PAGE_SIZE, PRECISION,
            TILE, False, False, None,
        )  # fmt: skip
    top, total, acc = _prefill_tiles(
        cut, tl.cdiv(end, TILE), query, kv, page_indices, table, head, end, query_at, top, total, acc,
        first_page, window, inner, factor, SOFT_CAP, KV_HEADS, HEAD_DIM, DIM_PAD, PAGE_SIZE, PRECISION,
        TILE, WINDOWED, True, None if WINDOWED else 1,
    )  # fmt: skip
    return total, acc


@triton.jit
def _prefill_tiles(
    begin, stop, query, kv, page_indices, table, head, end, query_at, top, total, acc,
    first_page, window, inner, factor,
    SOFT_CAP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, WINDOWED: tl.constexpr,
    CUT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Let the running softmax meet the tiles `begin:stop`, which some queries see in part if CUT."""
    for index in tl.range(begin, stop, num_stages=STAGES):
        keys, values = load_tile(
            kv, page_indices, table, head, index * TILE, end, first_page, KV_HEADS, HEAD_DIM, DIM_PAD,
            PAGE_SIZE, TILE, CUT,
        )  # fmt: skip
        scores = scores_of(query, keys, inner, SOFT_CAP, PRECISION)
        if CUT:
            key_at = (index * TILE + tl.arange(0, TILE))[None, :]
            seen = key_at <= query_at[:, None]
            if WINDOWED:
                seen &= key_at > query_at[:, None] - window
            scores = tl.where(seen, scores, float("-inf"))
        top, total, weights, fade = weigh(scores, top, total, factor, WINDOWED)
        weights, values = weights.to(query.dtype), values.to(query.dtype)
        acc = tl.dot(weights, values, acc * fade[:, None], input_precision=PRECISION)
    return top, total, acc
