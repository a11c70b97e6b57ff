"""RMSNorm in Triton, alone or after the addition to the residual: one program a token, one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import OPTIONS


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x over the root of its mean square, times (offset + weight). Zhang & Sennrich 2019.

    x: [..., size], of one stride between its rows; weight: [size]. The result has x's shape and dtype.
    """
    lines = x.view(-1, x.shape[-1])
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(lines, lines, weight, normed, normed, eps, offset, False)
    return normed


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(norm of x + residual, x + residual), all [tokens, size]. Neither argument is changed."""
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    _launch(x, residual, weight, normed, total, eps, offset, True)
    return normed, total


def _launch(
    x: Tensor, residual: Tensor, weight: Tensor, normed: Tensor, total: Tensor, eps: float, offset: float,
    add: bool,
) -> None:  # fmt: skip
    size = x.shape[1]
    block = triton.next_power_of_2(size)
    _norm[(x.shape[0],)](
        x, residual, weight, normed, total, eps, offset, x.stride(0), residual.stride(0),
        SIZE=size, BLOCK=block, ADD=add, num_warps=min(16, max(1, block // 512)), **OPTIONS,
    )  # fmt: skip


@triton.jit
def _norm(
    x, residual, weight, normed, total, eps, offset, x_stride, residual_stride,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Norm of one line of x, or with ADD of x + residual, which is stored too."""
    line = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + offset
    wide = tl.load(x + line * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        wide += tl.load(residual + line * residual_stride + at, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + line * SIZE + at, rounded, mask=inside)
        wide = rounded.to(tl.float32)  # so that it makes no difference whether the two were fused
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    tl.store(normed + line * SIZE + at, (wide * scale).to(normed.dtype.element_ty), mask=inside)
