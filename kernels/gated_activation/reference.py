"""The gate of a decoder's MLP in plain numpy: the truth that every other implementation is held to."""

from typing import Literal

import numpy as np


def gated_activation(gate_up: np.ndarray, kind: Literal["silu", "gelu_tanh"]) -> np.ndarray:
    """activation(gate) * up: [tokens, 2 * mlp], gate before up, to [tokens, mlp] float32."""
    gate, up = np.split(gate_up.astype(np.float32), 2, axis=-1)
    if kind == "silu":
        return gate / (1 + np.exp(-gate)) * up
    return gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
