"""The gate of a decoder's MLP in Triton."""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..overlap import overlapped, wait_for_previous
from ..tuning import OPTIONS, target_of

_BLOCK = 1024


def gated_activation(gate_up: Tensor, kind: Literal["silu", "gelu_tanh"]) -> Tensor:
    """activation(gate) * up: [tokens, 2 * mlp], gate before up, to [tokens, mlp]."""
    tokens, width = gate_up.shape
    out = torch.empty(tokens, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    _gate[(tokens, triton.cdiv(width // 2, _BLOCK))](
        gate_up,
        out,
        gate_up.stride(0),
        SIZE=width // 2,
        SILU=kind == "silu",
        BLOCK=_BLOCK,
        num_warps=4,
        **overlapped(target_of(gate_up.device)),
        **OPTIONS,
    )
    return out


@triton.jit
def _gate(
    gate_up, out, stride, SIZE: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    """A block of one token's features; float32 until it is stored."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    wait_for_previous(OVERLAP)
    gate = tl.load(gate_up + token * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * stride + SIZE + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * SIZE + at, (activated(gate, SILU) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def activated(gate, SILU: tl.constexpr):
    """SiLU, or GELU by its tanh, which as a sigmoid is (1 + tanh(y)) / 2 = sigmoid(2 y)."""
    slope = gate if SILU else 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    return gate / (1 + tl.exp(-slope))
