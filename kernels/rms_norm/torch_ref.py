"""RMSNorm in plain PyTorch: what serves on CPU. Sums are float32 whatever the dtype."""

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, *, onto: Tensor | None = None
) -> Tensor:
    """x over the root of its mean square, times (offset + weight). Zhang & Sennrich 2019.

    x: [..., size]; weight: [size]. The result has x's shape and dtype. What is added `onto` a residual of
    x's shape is added in its place, and the residual returned.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = (wide * scale * (offset + weight.float())).to(x.dtype)
    return normed if onto is None else onto.add_(normed)
