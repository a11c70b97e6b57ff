"""What the ranks' products yield, added up: by the kernel that stores into the other GPUs' memory where that
is possible and best, else by the process group (NCCL, gloo)."""

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from ...engine.config import Choice
from ...kernels.all_reduce.inbox import BLOCK, Inbox, bits_of, empty_inbox, inbox_shape
from ...kernels.all_reduce.torch_ref import all_reduce_add
from .peer_memory import map_peers
from .ranks import Ranks

_SENT = 8 << 20  # bytes that a rank sends in one launch


class RankSums:
    """Sums over all ranks; with one rank there is nothing to add."""

    def __init__(self, ranks: Ranks, inbox: Inbox | None = None) -> None:
        """Without an inbox every sum is the process group's."""
        self._alone = ranks.size == 1
        self._small = 0 if inbox is None else _largest(ranks, inbox)  # elements
        self._one_shot: Callable[[Tensor, Tensor | None], Tensor] = all_reduce_add
        if inbox is not None:
            from ...kernels.all_reduce.triton import all_reduce_add as one_shot

            self._one_shot = partial(one_shot, inbox=inbox)

    def add(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """residual + the sum of all ranks' x, or that sum alone; [T, embed]. May overwrite x."""
        if self._alone:
            return x if residual is None else residual + x
        chosen = self._one_shot if x.numel() <= self._small else all_reduce_add
        return chosen(x, residual)


def start_sums(ranks: Ranks, dtype: torch.dtype, device: torch.device) -> tuple[RankSums, tuple[Choice, ...]]:
    """The sums of numbers of `dtype`, and how they are made. All ranks must call this, after they joined."""
    if ranks.size == 1:
        return RankSums(ranks), ()
    inbox, reason = None, _why_not(ranks, device)
    if not reason:
        try:
            inbox = open_inbox(ranks, _SENT // (ranks.size - 1) // dtype.itemsize, dtype, device)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        if not ranks.least(int(inbox is not None), device):  # by which all have opened theirs
            inbox, reason = None, reason or "another rank could not map its memory"
    if inbox is None:
        return RankSums(ranks), (Choice("all_reduce", "process group", reason),)
    size = _largest(ranks, inbox) * dtype.itemsize
    value = "one shot" if ranks.size == 2 else f"one shot up to {size >> 10} KiB, then process group"
    return RankSums(ranks, inbox), (Choice("all_reduce", value, "the GPUs reach each other's memory"),)


def _largest(ranks: Ranks, inbox: Inbox) -> int:
    """Elements that are best summed in one shot: of two ranks no way sends less; more ranks had better divide
    the work if there is much."""
    return sys.maxsize if ranks.size == 2 else inbox.capacity


def _why_not(ranks: Ranks, device: torch.device) -> str:
    """What keeps the ranks from storing into each other's memory, if anything does; the same on each."""
    if device.type == "cpu":
        return "ranks on a CPU share no memory"
    if torch.version.hip:
        return "AMD GPUs are left to RCCL"
    if find_spec("triton") is None:
        return "the package triton is not installed"
    for one in range(ranks.size):
        for other in range(ranks.size):
            if one != other and not torch.cuda.can_device_access_peer(one, other):
                return f"GPU {one} cannot reach the memory of GPU {other}"
    return ""


def open_inbox(
    ranks: Ranks, capacity: int, dtype: torch.dtype, device: torch.device, block: int = BLOCK
) -> Inbox:
    """An inbox that the other ranks of the default process group can store into, for about so many elements
    at once; only when all have one may any of them sum. Raises RuntimeError if the driver does not map it."""
    slots = torch.empty(inbox_shape(ranks.size, capacity), dtype=bits_of(dtype), device=device)
    peers = map_peers(ranks, slots)
    inbox = empty_inbox(ranks.rank, slots, peers.addresses, peers, block)
    torch.cuda.synchronize(device)  # it is empty then
    return inbox
