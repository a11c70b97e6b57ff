"""Ragged paged attention in Triton: a launch for the decode rows and one for the prefill chunks.

Decode is bound by memory, so its work is cut by bytes: all tiles of keys of all rows and heads stand in one
line, and each program takes an equal share of it, whatever the rows' lengths (the "stream-K" cut of Osama et
al. 2023, for the split softmax of flash-decoding, Dao et al. 2023). A (row, head) that several programs
share is put together by the one that finishes last. Lengths are read on the device, so that a captured graph
serves any. A KV head's query heads are rows of one product: a key is read once for them all. Prefill is in
`triton_prefill.py`.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..overlap import ask_for, overlapped, wait_for_previous
from ..tuning import OPTIONS, Target, measured, target_of
from .rows import RaggedRows
from .triton_prefill import launch_prefill
from .triton_tile import (
    NO_WINDOW,
    lanes_for,
    load_tile,
    power_of_two_within,
    scores_of,
    stages,
    start_softmax,
    weigh,
)  # fmt: skip

_LOG2_E = 1.4426950408889634


class DecodeSizes(NamedTuple):
    """How decode attention is compiled and launched."""

    tile: int  # keys met in one turn
    programs: int  # on each core
    num_warps: int
    num_stages: int
    least: int = 1  # tiles that one program takes
    lines: int = 16  # of the matrix product: query heads, of several rows where they share keys


def decode_sizes(target: Target, head_dim: int, kv_bytes: int, rows: int) -> DecodeSizes:
    """As measured, else two programs a core, which fit side by side, with as many bytes on their way as its
    shared memory holds; for few rows small programs, whose warps wait less for each other."""
    found = measured(target, "decode_attention", head_dim=head_dim, kv_bytes=kv_bytes, rows=rows)
    if found:
        return DecodeSizes(**found)
    ahead = 1 if target.is_amd else 3  # tiles; AMD keeps them in registers
    tile_bytes = min(32 << 10, target.shared_bytes // 2 // (ahead + 0.5))
    # of more keys, two programs' registers would not fit into an AMD core, and the second would wait
    tile = power_of_two_within(int(tile_bytes) // (2 * head_dim * kv_bytes), 16, 32 if target.is_amd else 64)
    if rows <= 16:
        warps = 2 if head_dim <= 128 else 4
        return DecodeSizes(min(tile, 32), 2, warps, stages(min(ahead, 2)), least=2)
    return DecodeSizes(tile, programs=2, num_warps=4, num_stages=stages(ahead))


def shared_sizes(target: Target, head_dim: int, kv_bytes: int) -> DecodeSizes:
    """Of keys that a group of rows shares: as measured, else as many lines as Hopper's matrix unit takes at
    least, fewer where so wide sums would not stay in registers."""
    found = measured(target, "shared_attention", head_dim=head_dim, kv_bytes=kv_bytes)
    if found:
        return DecodeSizes(**found)
    wide, hopper = head_dim * max(kv_bytes, 2) > 256, target.architecture == "sm_90"
    return DecodeSizes(
        32 if wide or target.is_amd else 64, programs=1, num_warps=8 if wide else 4,
        num_stages=stages(1 if target.is_amd else 2), lines=32 if wide and not hopper else 64,
    )  # fmt: skip


def own_sizes(target: Target, head_dim: int, kv_bytes: int) -> DecodeSizes:
    """Of the keys that each row of a group has to itself, which may be few: small programs, whose loads wait
    less for each other."""
    found = measured(target, "own_attention", head_dim=head_dim, kv_bytes=kv_bytes)
    if found:
        return DecodeSizes(**found)
    if target.is_amd or head_dim > 128:
        return decode_sizes(target, head_dim, kv_bytes, 256)
    return DecodeSizes(32, programs=4, num_warps=2, num_stages=stages(2))


class _Scores(NamedTuple):
    """How a product q @ k becomes an exponent of 2: `factor * product`, or with a soft cap
    `factor * tanh(inner * product)`."""

    inner: float
    factor: float

    @staticmethod
    def of(scale: float, soft_cap: float | None) -> "_Scores":
        if soft_cap is None:
            return _Scores(1.0, scale * _LOG2_E)
        return _Scores(scale / soft_cap, soft_cap * _LOG2_E)


def ragged_paged_attention(
    q: Tensor,
    kv_pages: Tensor,
    rows: RaggedRows,
    *,
    first_page: int = 0,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Let each token attend causally to its row's keys, which are in their pages already.

    Arguments and result as in `reference.py`; `page_size` is a power of two, q's last two axes are
    contiguous, and `rows.num_rows` and `rows.num_decode_rows` are host integers, which bound the
    launches. The result has q's dtype; sums are float32. Tokens that belong to no row, and decode rows
    without keys, get unspecified values. Calls on one device must follow each other on one stream.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    decode_rows, prefill_rows = rows.num_decode_rows, rows.num_rows - rows.num_decode_rows
    scores = _Scores.of(scale * k_scale, soft_cap)
    layer = {
        "first_page": first_page,
        "window": NO_WINDOW if window is None else window,
        "inner": scores.inner,
        "factor": scores.factor,
        "v_scale": v_scale,
        "q_stride": q.stride(0),
        "SOFT_CAP": soft_cap is not None,
        "SINKS": sinks is not None,
        **_shapes(q, kv_pages),
    }
    sinks = q if sinks is None else sinks
    if decode_rows:
        _launch_decode(q, kv_pages, out, sinks, rows, layer)
    if prefill_rows:
        launch_prefill(q, kv_pages, out, sinks, rows, layer, target_of(q.device))
    return out


def _shapes(q: Tensor, kv_pages: Tensor) -> dict[str, Any]:
    heads, head_dim = q.shape[1:]
    return {
        "KV_HEADS": kv_pages.shape[1],
        "GROUP": heads // kv_pages.shape[1],
        "HEAD_DIM": head_dim,
        "DIM_PAD": max(16, triton.next_power_of_2(head_dim)),
        "PAGE_SIZE": kv_pages.shape[2],
        "PRECISION": "ieee",  # of float32 products; narrower ones are exact anyway
    }


def _launch_decode(
    q: Tensor, kv_pages: Tensor, out: Tensor, sinks: Tensor, rows: RaggedRows, layer: dict[str, Any]
) -> None:
    """One launch, or two for rows that share pages: keys that a group shares, then what is each row's own."""
    target, lanes = target_of(q.device), lanes_for(rows.num_decode_rows)
    case = target, q.shape[2], kv_pages.element_size()
    attend = partial(_launch_part, q, kv_pages, out, sinks, rows, layer, target)
    if rows.group_rows is None or layer["window"] < NO_WINDOW:
        attend(lanes, "all", decode_sizes(*case, lanes), 1, None)
        return
    lanes = max(lanes, 256)  # to be compiled less often: a step that shares is long enough not to mind
    shared, own = shared_sizes(*case), own_sizes(*case)
    left = torch.empty(lanes * q.shape[1] * (layer["DIM_PAD"] + 2), dtype=torch.float32, device=q.device)
    for part, sizes in (("shared", shared), ("own", own)):
        attend(lanes, part, sizes, max(shared.tile, own.tile), left)


def _launch_part(
    q: Tensor, kv_pages: Tensor, out: Tensor, sinks: Tensor, rows: RaggedRows, layer: dict[str, Any],
    target: Target, lanes: int, part: str, sizes: DecodeSizes, whole: int, left: Tensor | None,
) -> None:  # fmt: skip
    """Attend to a part of the decode rows' keys; a group shares so many that `whole` divides them."""
    programs, group = sizes.programs * target.cores, layer["GROUP"]
    query_rows = max(sizes.lines, triton.next_power_of_2(group))
    members = query_rows // group if part == "shared" else 1
    lines = triton.next_power_of_2(members * group)
    registers = 4096 * sizes.num_warps  # for the parts that one turn of combining reads
    acc_size = lines * layer["DIM_PAD"]
    scratch = _scratch(q.device, programs, acc_size, lines, lanes * layer["KV_HEADS"])
    nothing = rows.kv_lens
    _decode[(programs,)](
        q, kv_pages, out, scratch[0] if left is None else left, sinks, *scratch, rows.kv_lens,
        nothing if left is None else rows.group_rows, nothing if left is None else rows.shared_pages,
        rows.page_indices, rows.page_offsets, num_rows=rows.num_decode_rows, **layer, PART=part, WHOLE=whole,
        ROWS=lanes, PROGRAMS=programs, MEMBERS=members, LINES=lines, QUERY_ROWS=query_rows,
        PARTS=1 if part == "shared" else power_of_two_within(registers // acc_size, 1, 32),
        TILE=sizes.tile, LEAST=sizes.least, num_warps=sizes.num_warps, num_stages=sizes.num_stages,
        **overlapped(target), **OPTIONS,
    )  # fmt: skip


@cache
def _scratch(
    device: torch.device, programs: int, acc_size: int, lines: int, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where programs that share a (row, head) leave their parts, and how many have arrived.

    Kept between calls: the counts must be zero before a launch, and every launch leaves them so.
    """
    return (
        torch.empty(2 * programs, acc_size, dtype=torch.float32, device=device),
        torch.empty(2 * programs, 2, lines, dtype=torch.float32, device=device),
        torch.zeros(heads, dtype=torch.int32, device=device),
    )


@triton.jit
def _ask_for_tile(
    kv, page_indices, table, head, start, length, first_page,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """What `load_tile` will load, into the L2 cache: this step's own key may not be written yet."""
    each: tl.constexpr = 1024 // kv.dtype.element_ty.primitive_bitwidth  # elements of a line
    at = start + tl.arange(0, TILE)
    page = tl.load(page_indices + table + at // PAGE_SIZE, mask=at < length, other=0)
    line = ((first_page + page) * KV_HEADS + head) * PAGE_SIZE + at % PAGE_SIZE
    count: tl.constexpr = 2 * DIM_PAD // each if 2 * DIM_PAD > each else 1
    lines = tl.minimum(tl.arange(0, count) * each, 2 * HEAD_DIM - 1)
    ask_for(kv + line.to(tl.int64)[:, None] * (2 * HEAD_DIM) + lines[None, :], True)


@triton.jit(do_not_specialize=["num_rows", "first_page", "window"])
def _decode(
    q, kv, out, left, sinks, partials, softmaxes, arrivals, kv_lens, group_rows, shared_pages, page_indices,
    page_offsets, num_rows, first_page, window, inner, factor, v_scale, q_stride,
    SOFT_CAP: tl.constexpr, SINKS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    PART: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr,
    MEMBERS: tl.constexpr, LINES: tl.constexpr, QUERY_ROWS: tl.constexpr, PARTS: tl.constexpr,
    TILE: tl.constexpr, LEAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program's share of all (row, head, tile) of the decode rows, taken in that order. Where the keys
    that rows share are read, up to MEMBERS rows of a group are one, at the place of the first."""
    program = tl.program_id(0)
    lane = tl.arange(0, ROWS)
    first_tiles, tiles, units = _lines_of(
        kv_lens, group_rows, shared_pages, lane, num_rows, window, PAGE_SIZE, PART, WHOLE, MEMBERS, TILE
    )
    ends = tl.cumsum(tiles * units, 0)
    all_tiles = tl.sum(tiles * units, 0) * KV_HEADS
    share = tl.maximum(tl.cdiv(all_tiles, PROGRAMS), LEAST)
    at = program * share
    stop = tl.minimum(at + share, all_tiles)
    while at < stop:
        row = tl.sum((ends * KV_HEADS <= at).to(tl.int32), 0)
        row_tiles = tl.sum(tl.where(lane == row, tiles, 0), 0)
        row_start = tl.sum(tl.where(lane == row, ends - tiles * units, 0), 0) * KV_HEADS
        head = (at - row_start) // row_tiles
        start = row_start + head * row_tiles
        segment_end = tl.minimum(stop, start + row_tiles)
        tile = tl.sum(tl.where(lane == row, first_tiles, 0), 0) + at - start
        table = tl.load(page_offsets + row)
        length = tl.load(kv_lens + row)
        row, members, head = _unit_of(group_rows, row, head, KV_HEADS, PART, MEMBERS)
        if OVERLAP:
            _ask_for_tile(
                kv, page_indices, table, head, tile * TILE, length, first_page, KV_HEADS, HEAD_DIM,
                DIM_PAD, PAGE_SIZE, TILE,
            )  # fmt: skip
        wait_for_previous(OVERLAP)
        top, total, acc = _decode_segment(
            q, kv, left, sinks, page_indices, table, row, members, head, length, tile,
            tile + segment_end - at, at == start, first_page, window, inner, factor, q_stride, SOFT_CAP,
            SINKS, KV_HEADS, GROUP, HEAD_DIM, DIM_PAD, PAGE_SIZE, PRECISION, PART, ROWS, QUERY_ROWS, TILE,
        )  # fmt: skip
        if (at == start) & (segment_end == start + row_tiles):
            _finish(
                out, left, row, members, head, top, total, acc, v_scale, KV_HEADS, GROUP, HEAD_DIM, DIM_PAD,
                PART, ROWS, QUERY_ROWS,
            )  # fmt: skip
        else:
            part = 2 * program + (at != program * share).to(tl.int32)
            _leave(partials, softmaxes, part, top, total, acc, DIM_PAD, LINES, QUERY_ROWS)
            last = (start + row_tiles - 1) // share
            arrival = arrivals + row * KV_HEADS + head
            if tl.atomic_add(arrival, 1, sem="acq_rel") == last - start // share:
                tl.store(arrival, 0)
                _combine(
                    out, left, row, members, head, partials, softmaxes, start, share, last, v_scale, KV_HEADS,
                    GROUP, HEAD_DIM, DIM_PAD, PART, ROWS, LINES, PARTS,
                )  # fmt: skip
        at = segment_end


@triton.jit
def _lines_of(
    kv_lens, group_rows, shared_pages, lane, num_rows, window, PAGE_SIZE: tl.constexpr, PART: tl.constexpr,
    WHOLE: tl.constexpr, MEMBERS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of each row the first tile of keys that is met, how many are, and by how many units of rows."""
    live = lane < num_rows
    if PART != "all":
        shared = tl.load(shared_pages + lane, mask=live, other=0) * PAGE_SIZE // WHOLE * (WHOLE // TILE)
    if PART == "shared":
        group = tl.load(group_rows + lane, mask=live, other=0)
        return tl.zeros_like(shared), shared, tl.cdiv(group, MEMBERS)
    else:
        lengths = tl.load(kv_lens + lane, mask=live, other=0)
        if PART == "own":
            first = shared
        else:
            first = tl.maximum(lengths - window, 0) // TILE
        return first, tl.cdiv(lengths, TILE) - first, tl.full(lane.shape, 1, tl.int32)


@triton.jit
def _unit_of(group_rows, row, head, KV_HEADS: tl.constexpr, PART: tl.constexpr, MEMBERS: tl.constexpr):
    """First row, rows and KV head, where heads are counted through all units of a row's group."""
    if PART == "shared":
        before = head // KV_HEADS * MEMBERS
        return row + before, tl.minimum(tl.load(group_rows + row) - before, MEMBERS), head % KV_HEADS
    else:
        return row, 1, head


@triton.jit
def _decode_segment(
    q, kv, left, sinks, page_indices, table, row, members, head, length, tile, end_tile, begins,
    first_page, window, inner, factor, q_stride,
    SOFT_CAP: tl.constexpr, SINKS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    PART: tl.constexpr, ROWS: tl.constexpr, QUERY_ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The running softmax of a KV head and `members` rows from `row` on over their tiles `tile:end_tile`."""
    lines = tl.arange(0, QUERY_ROWS)
    dims = tl.arange(0, DIM_PAD)
    live = lines < members * GROUP
    heads = head * GROUP + lines % GROUP
    queries = q + (row + lines // GROUP).to(tl.int64)[:, None] * q_stride
    queries += heads[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(queries, mask=live[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    if PART == "own":
        resumed = lines < tl.where(begins & (tile > 0), GROUP, 0)
        top, total = start_softmax(sinks, heads, live, begins & (tile == 0), QUERY_ROWS, SINKS)
        place = row * (KV_HEADS * GROUP) + heads
        softmax = left + ROWS * KV_HEADS * GROUP * DIM_PAD + place
        top = tl.maximum(top, tl.load(softmax, mask=resumed, other=float("-inf")))
        total += tl.load(softmax + ROWS * KV_HEADS * GROUP, mask=resumed, other=0.0)
        parts = left + place[:, None] * DIM_PAD + dims[None, :]
        acc = tl.load(parts, mask=resumed[:, None], other=0.0)
    else:
        top, total = start_softmax(sinks, heads, live, begins, QUERY_ROWS, SINKS)
        acc = tl.zeros([QUERY_ROWS, DIM_PAD], tl.float32)
    for index in range(tile, end_tile):
        keys, values = load_tile(
            kv, page_indices, table, head, index * TILE, length, first_page, KV_HEADS, HEAD_DIM, DIM_PAD,
            PAGE_SIZE, TILE, PART != "shared",
        )  # fmt: skip
        scores = scores_of(query, keys, inner, SOFT_CAP, PRECISION)
        if PART != "shared":
            at = index * TILE + tl.arange(0, TILE)
            seen = ((at < length) & (at >= length - window))[None, :]
            scores = tl.where(seen, scores, float("-inf"))
        top, total, weights, fade = weigh(scores, top, total, factor, False)
        weights, values = weights.to(query.dtype), values.to(query.dtype)
        acc = tl.dot(weights, values, acc * fade[:, None], input_precision=PRECISION)
    return top, total, acc


@triton.jit
def _finish(
    out, left, row, members, head, top, total, acc, v_scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    PART: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Store what the heads attend to; of keys that rows share the sums, from which each row goes on."""
    lines = tl.arange(0, LINES)
    dims = tl.arange(0, DIM_PAD)
    live = lines < members * GROUP
    at = ((row + lines // GROUP) * KV_HEADS + head) * GROUP + lines % GROUP
    if PART == "shared":
        tl.store(left + at[:, None] * DIM_PAD + dims[None, :], acc, mask=live[:, None])
        softmax = left + ROWS * KV_HEADS * GROUP * DIM_PAD + at
        tl.store(softmax, top, mask=live)
        tl.store(softmax + ROWS * KV_HEADS * GROUP, total, mask=live)
    else:
        attended = (acc / total[:, None] * v_scale).to(out.dtype.element_ty)
        to = out + at.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(to, attended, mask=live[:, None] & (dims < HEAD_DIM)[None, :])


@triton.jit
def _leave(
    partials, softmaxes, part, top, total, acc, DIM_PAD: tl.constexpr, LINES: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
):  # fmt: skip
    """Store a part where the program that arrives last will find it."""
    lines = tl.arange(0, QUERY_ROWS)
    live = lines < LINES
    to = partials + (part * LINES + lines)[:, None] * DIM_PAD + tl.arange(0, DIM_PAD)[None, :]
    tl.store(to, acc, mask=live[:, None])
    tl.store(softmaxes + part * 2 * LINES + lines, top, mask=live)
    tl.store(softmaxes + (part * 2 + 1) * LINES + lines, total, mask=live)
    tl.debug_barrier()  # every thread's stores come before the one thread's release


@triton.jit
def _combine(
    out, left, row, members, head, partials, softmaxes, start, share, last, v_scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    PART: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Put together what programs up to `last` left of the (row, head) that begins at `start`."""
    lines = tl.arange(0, LINES)
    dims = tl.arange(0, DIM_PAD)
    top = tl.full([LINES], float("-inf"), tl.float32)
    total, acc = tl.zeros([LINES], tl.float32), tl.zeros([LINES, DIM_PAD], tl.float32)
    for first in range(start // share, last + 1, PARTS):
        program = first + tl.arange(0, PARTS)
        live = program <= last
        part = 2 * program + (program * share < start).to(tl.int32)
        softmax = softmaxes + part[:, None] * 2 * LINES + lines[None, :]
        tops = tl.load(softmax, mask=live[:, None], other=float("-inf"), cache_modifier=".cg")
        totals = tl.load(softmax + LINES, mask=live[:, None], other=0.0, cache_modifier=".cg")
        at = (part[:, None] * LINES + lines[None, :])[:, :, None] * DIM_PAD + dims[None, None, :]
        parts = tl.load(partials + at, mask=live[:, None, None], other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(tops, 0))
        fade = tl.exp2(top - new_top)
        weights = tl.exp2(tops - new_top[None, :])
        total = total * fade + tl.sum(totals * weights, 0)
        acc = acc * fade[:, None] + tl.sum(parts * weights[:, :, None], 0)
        top = new_top
    _finish(
        out, left, row, members, head, top, total, acc, v_scale, KV_HEADS, GROUP, HEAD_DIM, DIM_PAD, PART,
        ROWS, LINES,
    )  # fmt: skip
