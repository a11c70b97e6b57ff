"""What the ranks of one host need to add up a tensor by storing into each other's memory."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

SLOTS = 3  # in turn: one is being filled, one is being read, one is being emptied
BLOCK = 256  # elements that one program sends and receives; capacities are multiples of it


class Inbox(NamedTuple):
    """Where a rank receives the others' shares. What has not arrived is negative zero, which nobody sends:
    the data is its own flag, and no barrier is needed.

    Sum number n of a block uses slot `n % 3` and empties the slot of n - 1. A rank fills that one again for
    n + 2 at the earliest, when it has all shares of n + 1, and those are sent after n ends here.
    """

    rank: int
    slots: Tensor  # [3, ranks, capacity] int16 or int32, the bits of the numbers; written by all ranks
    addresses: Tensor  # [ranks] int64: where each rank's `slots` lie, as this rank sees them
    turns: Tensor  # [capacity / block] int32: the slot that each block uses next
    mapping: Any = None  # kept, for the other ranks' memory stays mapped as long

    @property
    def capacity(self) -> int:
        """The most elements of one launch."""
        return self.slots.shape[2]

    @property
    def block(self) -> int:
        """Elements that one program sends and receives."""
        return self.capacity // len(self.turns)


def inbox_shape(ranks: int, capacity: int) -> tuple[int, int, int]:
    """Of `Inbox.slots`, for about so many elements."""
    return SLOTS, ranks, max(capacity // BLOCK, 1) * BLOCK


def bits_of(dtype: torch.dtype) -> torch.dtype:
    """The integers as which numbers of `dtype` are sent."""
    return {2: torch.int16, 4: torch.int32}[dtype.itemsize]


def empty_inbox(
    rank: int, slots: Tensor, addresses: list[int], mapping: Any = None, block: int = BLOCK
) -> Inbox:
    """An inbox in `slots`, nothing received. All ranks must have theirs before any of them sums."""
    slots.fill_(torch.iinfo(slots.dtype).min)  # the bits of negative zero
    turns = torch.zeros(slots.shape[2] // block, dtype=torch.int32, device=slots.device)
    return Inbox(rank, slots, torch.tensor(addresses, device=slots.device), turns, mapping)
