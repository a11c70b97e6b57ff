"""Products of a few rows in Triton, with the norm before them and the gate or the sum after in one launch.

With few rows a product is a stream of its matrix through the cores, and what stands around it - a norm, a
gate, an addition, each with a launch of its own - costs as much as several megabytes of it. Every program
streams some rows of the matrix; the norm's scale, one number a row of x, is found on the way and multiplied
in at the end. Without a gate each warp can have its own part of the sum, and read no other's. Of many rows
the vendor's library is faster, and their neighbours cost little beside them.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..gated_activation.triton import activated, gated_activation
from ..overlap import ask_for, let_next_start, overlapped, wait_for_previous
from ..rms_norm.triton import rms_norm
from ..tuning import OPTIONS, Target, measured, target_of
from .torch_ref import Norm

FEW_ROWS = 32


class LinearSizes(NamedTuple):
    """How the product of few rows is compiled."""

    columns: int  # of the result, that one program computes
    depth: int  # of the sum, met in one turn
    num_warps: int
    num_stages: int


def linear_sizes(
    target: Target, shape: tuple[int, int], rows: int, *, normed: bool, gated: bool
) -> LinearSizes | None:
    """For a matrix [out, in] and 16 or 32 rows: as measured, else tiles that divide the matrix and keep
    every core busy. None where there are none, and where the library is faster."""
    if rows > FEW_ROWS:
        return None
    outputs, inputs = shape
    found = measured(target, "linear", outputs=outputs, inputs=inputs, rows=rows)
    if found:
        return LinearSizes(**found)
    if rows > 16 and outputs * inputs < 64 << 20:
        return None
    columns = 64 if normed and rows > 16 else 32
    while columns > 16 and (
        outputs % (columns << gated) or (normed and 3 * outputs < 2 * columns * target.cores)
    ):
        columns //= 2
    # a tile that is normed on its way lies in registers too
    tile, stages = (8192, 3 if gated else 4) if normed or rows > 16 else (16384, 3)
    depth = min(tile // columns, inputs & -inputs)
    if outputs % (columns << gated) or depth < 32:
        return None
    room = (target.shared_bytes - 1024) // (2 * ((columns << gated) + rows))
    while 2 * depth > room:
        depth //= 2
    return LinearSizes(
        columns, depth, max(4, columns // 8), 1 if target.is_amd else min(stages, room // depth)
    )


def summed_sizes(
    target: Target, shape: tuple[int, int], rows: int, *, normed: bool = False
) -> LinearSizes | None:
    """For a matrix [out, in] and 8, 16 or 32 rows, without gate: as measured, else of up to 16 rows; with a
    norm as measured of 8. None where there are none."""
    if rows > FEW_ROWS or (normed and rows > 8):
        return None
    outputs, inputs = shape
    found = measured(target, "linear", outputs=outputs, inputs=inputs, rows=rows)
    if found:
        return LinearSizes(**found)
    columns, depth = 16, min(512, inputs & -inputs)
    if normed or rows > 16 or outputs % columns or depth < 32:
        return None
    room = (target.shared_bytes - 1024) // (2 * (columns + rows))
    stages = min(3 if inputs > 8192 else 4, room // depth)
    return LinearSizes(columns, depth, min(4, depth // 16), 1 if target.is_amd else max(1, stages))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    gate: Literal["silu", "gelu_tanh"] | None = None,
    onto: Tensor | None = None,
) -> Tensor:
    """Arguments and result as in `torch_ref.py`; all are contiguous."""
    target, rows = target_of(x.device), triton.next_power_of_2(len(x))
    shape = (weight.shape[0], weight.shape[1])
    if gate is None:
        few = max(16 if target.is_amd else 8, rows)  # which its products take at least
        sizes = summed_sizes(target, shape, few, normed=norm is not None)
        if sizes is not None:
            return _launch_summed(x, weight, bias, norm, onto, few, sizes, target)
    rows = max(16, rows)
    sizes = linear_sizes(target, shape, rows, normed=norm is not None, gated=gate is not None)
    if sizes is None:
        return _many_rows(x, weight, bias, norm, gate, onto)
    outputs, inputs = weight.shape[0] >> (gate is not None), weight.shape[1]
    out = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device) if onto is None else onto
    scale, eps, offset = norm or (weight, 0.0, 0.0)
    _linear[(outputs // sizes.columns,)](
        x, weight, weight if bias is None else bias, scale, out, len(x), eps, offset,
        OUTPUTS=outputs, INPUTS=inputs, ROWS=rows, COLUMNS=sizes.columns, DEPTH=sizes.depth,
        NORM=norm is not None, BIAS=bias is not None, GATE=gate or "", ONTO=onto is not None,
        PRECISION="ieee", num_warps=sizes.num_warps, num_stages=sizes.num_stages, **overlapped(target),
        **OPTIONS,
    )  # fmt: skip
    return out


def _launch_summed(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm | None, onto: Tensor | None, rows: int,
    sizes: LinearSizes, target: Target,
) -> Tensor:  # fmt: skip
    outputs, inputs = weight.shape
    out = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device) if onto is None else onto
    scale, eps, offset = norm or (weight, 0.0, 0.0)
    _summed[(outputs // sizes.columns,)](
        x, weight, weight if bias is None else bias, scale, out, len(x), eps, offset,
        OUTPUTS=outputs, INPUTS=inputs, ROWS=rows, COLUMNS=sizes.columns, DEPTH=sizes.depth,
        WARPS=sizes.num_warps, NORM=norm is not None, BIAS=bias is not None, ONTO=onto is not None,
        PRECISION="ieee", num_warps=sizes.num_warps, num_stages=sizes.num_stages, **overlapped(target),
        **OPTIONS,
    )  # fmt: skip
    return out


def _many_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm | None,
    gate: Literal["silu", "gelu_tanh"] | None, onto: Tensor | None,
) -> Tensor:  # fmt: skip
    if norm is not None:
        x = rms_norm(x, *norm)
    if onto is not None:
        onto.addmm_(x, weight.t())
        return onto if bias is None else onto.add_(bias)
    y = F.linear(x, weight, bias)
    return y if gate is None else gated_activation(y, gate)


@triton.jit
def _ask_for_beginnings(weight, column, INPUTS: tl.constexpr, OVERLAP: tl.constexpr):
    """The first four lines of those rows of the matrix that make `column`; more was slower."""
    each: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth  # elements of a line
    ahead = tl.minimum(each * tl.arange(0, 4), INPUTS - 1)
    ask_for(weight + column.to(tl.int64)[:, None] * INPUTS + ahead[None, :], OVERLAP)


@triton.jit(do_not_specialize=["rows"])
def _linear(
    x, weight, bias, norm, out, rows, eps, offset,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr, ONTO: tl.constexpr,
    PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Some columns of the result, for all rows of x."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    line = tl.arange(0, ROWS)
    at = tl.arange(0, DEPTH)
    live = (line < rows)[:, None]
    lines = x + line[:, None] * INPUTS + at[None, :]
    streams = weight + column.to(tl.int64)[None, :] * INPUTS + at[:, None]
    _ask_for_beginnings(weight, column, INPUTS, OVERLAP)
    wait_for_previous(OVERLAP)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)  # what the gate lets through
    squares = tl.zeros([ROWS, DEPTH // 8], tl.float32)  # a thread's neighbours, which it sums up alone
    for start in range(0, INPUTS, DEPTH):
        matrix = tl.load(streams + start, eviction_policy="evict_first")
        given = tl.load(lines + start, mask=live, other=0.0)
        if NORM:
            wide = given.to(tl.float32)
            squares += tl.sum(tl.reshape(wide * wide, [ROWS, DEPTH // 8, 8]), 2)
            given = (wide * (tl.load(norm + start + at).to(tl.float32) + offset)[None, :]).to(given.dtype)
        acc = tl.dot(given, matrix, acc, input_precision=PRECISION)
        if GATE != "":
            matrix = tl.load(streams + OUTPUTS * INPUTS + start, eviction_policy="evict_first")
            second = tl.dot(given, matrix, second, input_precision=PRECISION)
    let_next_start(OVERLAP)
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, 1) / INPUTS + eps)[:, None]
        acc *= scale
        second *= scale
    if BIAS:
        acc += tl.load(bias + column).to(tl.float32)[None, :]
    if GATE != "":
        if BIAS:
            second += tl.load(bias + OUTPUTS + column).to(tl.float32)[None, :]
        acc = activated(acc, GATE == "silu") * second
    to = out + line[:, None] * OUTPUTS + column[None, :]
    if ONTO:
        acc += tl.load(to, mask=live, other=0.0).to(tl.float32)
    tl.store(to, acc.to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"])
def _summed(
    x, weight, bias, norm, out, rows, eps, offset,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, WARPS: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, ONTO: tl.constexpr,
    PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Some columns of the result, for all rows of x. The first axis are the warps, of which each sums up its
    own part. The product is turned: the matrix fills the 16 lines of a core's product, x need fill only 8."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    line = tl.arange(0, ROWS)
    live = (line < rows)[None, :]
    part: tl.constexpr = DEPTH // WARPS
    at = tl.arange(0, WARPS)[:, None] * part + tl.arange(0, part)[None, :]
    lines = x + line[None, None, :] * INPUTS + at[:, :, None]
    streams = weight + column.to(tl.int64)[None, :, None] * INPUTS + at[:, None, :]
    given_live = tl.broadcast_to(live[:, None, :], [WARPS, part, ROWS])
    _ask_for_beginnings(weight, column, INPUTS, OVERLAP)
    wait_for_previous(OVERLAP)
    parts = tl.zeros([WARPS, COLUMNS, ROWS], tl.float32)
    squares = tl.zeros([WARPS, part // 8, ROWS], tl.float32)  # a thread's neighbours, which it sums up alone
    for start in range(0, INPUTS, DEPTH):
        matrix = tl.load(streams + start, eviction_policy="evict_first")
        given = tl.load(lines + start, mask=given_live, other=0.0)
        if NORM:
            wide = given.to(tl.float32)
            squares += tl.sum(tl.reshape(wide * wide, [WARPS, part // 8, 8, ROWS]), 2)
            given = (wide * (tl.load(norm + start + at).to(tl.float32) + offset)[:, :, None]).to(given.dtype)
        parts = tl.dot(matrix, given, parts, input_precision=PRECISION)
    let_next_start(OVERLAP)
    acc = tl.sum(parts, 0)
    if NORM:
        acc *= tl.rsqrt(tl.sum(tl.sum(squares, 0), 0) / INPUTS + eps)[None, :]
    if BIAS:
        acc += tl.load(bias + column).to(tl.float32)[:, None]
    to = out + line[None, :] * OUTPUTS + column[:, None]
    live = tl.broadcast_to(live, [COLUMNS, ROWS])
    if ONTO:
        acc += tl.load(to, mask=live, other=0.0).to(tl.float32)
    tl.store(to, acc.to(out.dtype.element_ty), mask=live)
