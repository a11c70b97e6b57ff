"""Rotary frequencies of a `RopeSpec`."""

import math

import numpy as np
from numpy.typing import NDArray

from .spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> NDArray[np.float32]:
    """Radians per position for each pair of dimensions.

    Returns float32 [head_dim / 2], computed in float64. `rope.attention_factor` is not part of it:
    whoever takes cos and sin multiplies them by it.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    plain = rope.base**-exponents
    match rope.kind:
        case "default":
            scaled = plain
        case "linear":
            scaled = plain / rope.factor
        case "llama3":
            scaled = _llama3(rope, plain)
        case "yarn":
            scaled = _yarn(rope, plain, head_dim)
    return scaled.astype(np.float32)


def _llama3(rope: RopeSpec, plain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep fast frequencies, divide slow ones by the factor, blend those between."""
    turns = rope.original_context * plain / (2 * math.pi)  # in the context it was trained on
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    share = np.clip(share, 0.0, 1.0)  # of the plain frequency
    return share * plain + (1 - share) * plain / rope.factor


def _yarn(rope: RopeSpec, plain: NDArray[np.float64], head_dim: int) -> NDArray[np.float64]:
    """Like llama3, with the blend linear in the index of the pair rather than in its frequency."""

    def index_of(turns: float) -> float:
        """The pair that makes so many turns in the original context."""
        return head_dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low = max(math.floor(index_of(rope.beta_fast)), 0)
    high = min(math.ceil(index_of(rope.beta_slow)), head_dim - 1)
    span = max(high - low, 0.001)
    scaled_share = np.clip((np.arange(head_dim // 2) - low) / span, 0.0, 1.0)
    return (1 - scaled_share) * plain + scaled_share * plain / rope.factor
