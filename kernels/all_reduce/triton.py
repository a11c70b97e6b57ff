"""The sum over the ranks of one host in Triton, in one shot: each rank stores its share into every other's
inbox and adds up what it finds in its own. One way over the link, and nothing to wait for but the data.

NVIDIA's GPUs alone: what it takes of AMD's memory to be seen by another card while a kernel runs is not known
here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..overlap import let_next_start, overlapped, wait_for_previous
from ..tuning import OPTIONS, target_of
from .inbox import SLOTS, Inbox


def all_reduce_add(x: Tensor, residual: Tensor | None, inbox: Inbox) -> Tensor:
    """residual + the sum of all ranks' x, or that sum alone, in the order of the ranks and so the same
    everywhere. All are contiguous, and x is of the dtype that the inbox was made for; what is larger than
    the inbox goes piece by piece.

    Every rank must make the same calls in the same order; they may be captured in graphs.
    """
    target = target_of(x.device)
    out = torch.empty_like(x if residual is None else residual)
    base = out if residual is None else residual
    for pieces in zip(*(each.view(-1).split(inbox.capacity) for each in (x, base, out)), strict=True):
        count = pieces[0].numel()
        _sum[(triton.cdiv(count, inbox.block),)](
            *pieces, inbox.slots, inbox.addresses, inbox.turns, count, inbox.capacity,
            RANK=inbox.rank, RANKS=inbox.slots.shape[1], SLOTS=SLOTS,
            EMPTY=torch.iinfo(inbox.slots.dtype).min, ADD=residual is not None, BLOCK=inbox.block,
            num_warps=max(inbox.block // 256, 1), **overlapped(target), **OPTIONS,
        )  # fmt: skip
    return out


@triton.jit
def _sum(
    x, residual, out, slots, addresses, turns, count, capacity,
    RANK: tl.constexpr, RANKS: tl.constexpr, SLOTS: tl.constexpr, EMPTY: tl.constexpr, ADD: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One block: send, empty the slot that was read last, then wait for what comes."""
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    bits = slots.dtype.element_ty
    wait_for_previous(OVERLAP)
    turn = tl.load(turns + block, eviction_policy="evict_last")  # a layer's weights pass through the cache
    share = tl.load(x + at, mask=inside, other=0.0).to(bits, bitcast=True)
    share = tl.where(share == EMPTY, tl.zeros_like(share), share)
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            theirs = tl.load(addresses + rank, eviction_policy="evict_last").to(slots.dtype)
            theirs = tl.multiple_of(theirs, 16) + (turn * RANKS + RANK) * capacity
            tl.store(theirs + at, share, mask=inside)
    let_next_start(OVERLAP)
    before = (turn + SLOTS - 1) % SLOTS
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            spent = slots + (before * RANKS + rank) * capacity
            tl.store(spent + at, tl.full([BLOCK], EMPTY, bits))
    if ADD:  # asked for before the wait, which covers it
        base = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for rank in tl.static_range(RANKS):
        part = share
        if rank != RANK:
            received = slots + (turn * RANKS + rank) * capacity
            part = tl.load(received + at, mask=inside, other=0, volatile=True)
            while tl.max((part == EMPTY).to(tl.int32), 0) != 0:
                part = tl.load(received + at, mask=inside, other=0, volatile=True)
        total += part.to(x.dtype.element_ty, bitcast=True).to(tl.float32)
    total = total.to(x.dtype.element_ty)  # so that it makes no difference who sums
    if ADD:
        total = (total.to(tl.float32) + base).to(out.dtype.element_ty)
    tl.store(out + at, total, mask=inside)
    # last: what all warps have received depends on the turn that all have read
    tl.store(turns + block, (turn + 1) % SLOTS, eviction_policy="evict_last")
