"""The operations that have a kernel of ours, each with its PyTorch twin: chosen once, at start."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operations:
    """One implementation of each; signatures and meaning stand in `kernels/*/torch_ref.py`."""

    attention: Callable[..., Tensor]
    rope_and_write: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]]
    gated_activation: Callable[..., Tensor]
    choose_tokens: Callable[..., Tensor]


def operations_for(device: torch.device) -> Operations:
    """Triton kernels on a GPU, their twins on a CPU."""
    return twins()


def twins() -> Operations:
    """Every operation in plain PyTorch."""
    from ...kernels.gated_activation.torch_ref import gated_activation
    from ...kernels.paged_attention.torch_ref import ragged_paged_attention
    from ...kernels.rms_norm.torch_ref import add_rms_norm, rms_norm
    from ...kernels.rope_kv_write.torch_ref import rope_and_write
    from ...kernels.sampling.torch_ref import choose_tokens

    return Operations(
        ragged_paged_attention, rope_and_write, rms_norm, add_rms_norm, gated_activation, choose_tokens
    )
