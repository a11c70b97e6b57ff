"""Products of a decoder's matrices with what goes in before and on top after, in numpy: the truth."""

from typing import Literal

import numpy as np

from ..gated_activation.reference import gated_activation
from ..rms_norm.reference import rms_norm


def linear(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    norm: tuple[np.ndarray, float, float] | None = None,
    gate: Literal["silu", "gelu_tanh"] | None = None,
    onto: np.ndarray | None = None,
) -> np.ndarray:
    """x [tokens, in] times weight [out, in], plus bias [out]; float32.

    `norm` (weight [in], eps, offset) is applied to x before; `gate` after, which halves the columns;
    `onto` [tokens, out] is added last.
    """
    if norm is not None:
        x = rms_norm(x, *norm)
    y = x @ weight.T
    if bias is not None:
        y = y + bias
    if gate is not None:
        y = gated_activation(y, gate)
    return y if onto is None else y + onto
