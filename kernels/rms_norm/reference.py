"""RMSNorm in plain numpy: the truth that every other implementation is held to."""

import numpy as np


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, offset: float = 0.0) -> np.ndarray:
    """x over the root of its mean square, times (offset + weight). Zhang & Sennrich 2019.

    x: [..., size]; weight: [size]. Float32, whatever came.
    """
    wide = x.astype(np.float32)
    scale = 1 / np.sqrt((wide * wide).mean(-1, keepdims=True) + np.float32(eps))
    return wide * scale * (np.float32(offset) + weight.astype(np.float32))


def add_rms_norm(
    x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float, offset: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(norm of x + residual, x + residual), all [tokens, size]. The sum is rounded to residual's dtype,
    and what is normed is the rounded sum."""
    total = (x.astype(np.float32) + residual.astype(np.float32)).astype(residual.dtype)
    return rms_norm(total, weight, eps, offset), total
