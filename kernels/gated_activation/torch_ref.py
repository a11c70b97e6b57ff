"""The gate of a decoder's MLP in plain PyTorch: what serves on CPU."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def gated_activation(gate_up: Tensor, kind: Literal["silu", "gelu_tanh"]) -> Tensor:
    """activation(gate) * up: [tokens, 2 * mlp], gate before up, to [tokens, mlp]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) if kind == "silu" else F.gelu(gate, approximate="tanh")) * up
