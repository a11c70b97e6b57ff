"""Kernels that start while the one before them ends (NVIDIA's programmatic dependent launch, from Hopper on).

A kernel so launched does first what no kernel of the same step writes - it reads lengths and page tables,
and asks for weights and old keys - and then waits. Each has to wait before it touches anything else, and
by that waits for all before it. Where there is no such launch everything here does nothing.
"""

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .tuning import Target


def overlapped(target: Target) -> dict[str, Any]:
    """Arguments of a launch of a kernel that waits."""
    return {"OVERLAP": True, "launch_pdl": True} if target.overlaps else {"OVERLAP": False}


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Until everything that earlier kernels wrote is there."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def let_next_start(OVERLAP: tl.constexpr):
    """The next kernel may take room, once all programs of this one say so. Said too early, what the next one
    asks for is in the way of what this one still needs."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def ask_for(pointers, OVERLAP: tl.constexpr):
    """Have the line of 128 bytes that each of `pointers` lies in fetched into the L2 cache."""
    if OVERLAP:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False,
            pack=1,
        )  # fmt: skip
