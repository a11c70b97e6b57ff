"""RMSNorm in plain PyTorch: what serves on CPU. Sums are float32 whatever the dtype."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x over the root of its mean square, times (offset + weight). Zhang & Sennrich 2019.

    x: [..., size]; weight: [size]. The result has x's shape and dtype.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * (offset + weight.float())).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(norm of x + residual, x + residual), all [tokens, size]. Either may lie where an argument lay."""
    residual = x + residual
    return rms_norm(residual, weight, eps, offset), residual
