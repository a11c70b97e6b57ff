"""The sum over ranks in plain PyTorch: NCCL's on GPUs, gloo's on a CPU."""

import torch.distributed as dist
from torch import Tensor


def all_reduce_add(x: Tensor, residual: Tensor | None = None) -> Tensor:
    """residual + the sum of all ranks' x, or that sum alone. Overwrites x.

    The ranks are those of torch's default process group.
    """
    dist.all_reduce(x)
    return x if residual is None else residual + x
