"""RMSNorm in Triton: one program a token, one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..overlap import let_next_start, overlapped, wait_for_previous
from ..tuning import OPTIONS, target_of


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, *, onto: Tensor | None = None
) -> Tensor:
    """x over the root of its mean square, times (offset + weight). Zhang & Sennrich 2019.

    x: [..., size], of one stride between its rows; weight: [size]. The result has x's shape and dtype. What
    is added `onto` a contiguous residual of x's shape is added in its place, and the residual returned.
    """
    lines = x.view(-1, x.shape[-1])
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if onto is None else onto
    block = triton.next_power_of_2(lines.shape[1])
    _norm[(len(lines),)](
        lines, weight, out, eps, offset, lines.stride(0), SIZE=lines.shape[1], BLOCK=block,
        ONTO=onto is not None, num_warps=min(16, max(1, block // 512)), **overlapped(target_of(x.device)),
        **OPTIONS,
    )  # fmt: skip
    return out


@triton.jit
def _norm(
    x, weight, out, eps, offset, stride,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ONTO: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Norm of one line of x, added to a line of `out` if ONTO."""
    line = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + offset
    wait_for_previous(OVERLAP)
    wide = tl.load(x + line * stride + at, mask=inside, other=0.0).to(tl.float32)
    let_next_start(OVERLAP)
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    normed = wide * scale
    to = out + line * SIZE + at
    if ONTO:
        # rounded as a norm alone is, so that it makes no difference whether the two were fused
        normed = normed.to(out.dtype.element_ty).to(tl.float32)
        normed += tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, normed.to(out.dtype.element_ty), mask=inside)
