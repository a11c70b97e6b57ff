"""Products of a decoder's matrices in plain PyTorch: what serves on CPU, and on a GPU where rows are many."""

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..gated_activation.torch_ref import gated_activation
from ..rms_norm.torch_ref import rms_norm


class Norm(NamedTuple):
    """The RMSNorm that a product's input goes through."""

    weight: Tensor  # [in]
    eps: float
    offset: float = 0.0


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    gate: Literal["silu", "gelu_tanh"] | None = None,
    onto: Tensor | None = None,
) -> Tensor:
    """x [tokens, in] times weight [out, in], plus bias [out].

    `norm` is applied to x before; `gate` after, of whose columns the first half gates the second: the
    result is [tokens, out / 2]. What is added `onto` a residual [tokens, out] is added in its place, and
    the residual returned.
    """
    if norm is not None:
        x = rms_norm(x, *norm)
    y = F.linear(x, weight, bias)
    if gate is not None:
        y = gated_activation(y, gate)
    return y if onto is None else onto.add_(y)
