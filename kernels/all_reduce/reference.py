"""The sum over ranks in plain numpy: the truth that every other implementation is held to."""

from collections.abc import Sequence

import numpy as np


def all_reduce_add(shares: Sequence[np.ndarray], residual: np.ndarray | None = None) -> np.ndarray:
    """The sum of every rank's share, in float32 and in the order of the ranks, rounded to their dtype; then
    residual + that, rounded to residual's dtype."""
    total = np.zeros(shares[0].shape, np.float32)
    for share in shares:
        total = total + share.astype(np.float32)
    total = total.astype(shares[0].dtype)
    if residual is None:
        return total
    return (total.astype(np.float32) + residual.astype(np.float32)).astype(residual.dtype)
