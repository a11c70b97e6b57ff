"""The beginning of a step in Triton: one launch from token ids to the residual stream."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..overlap import let_next_start, overlapped, wait_for_previous
from ..tuning import OPTIONS, target_of


def embed(
    token_ids: Tensor, slots: Tensor, table: Tensor, page_tokens: Tensor, kv_slots: Tensor,
    *, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Arguments and result as in `torch_ref.py`; all are contiguous."""
    size = table.shape[1]
    out = torch.empty(len(token_ids), size, dtype=table.dtype, device=table.device)
    block = triton.next_power_of_2(size)
    _embed[(len(token_ids),)](
        token_ids, slots, table, page_tokens, kv_slots, out, scale, SIZE=size, BLOCK=block,
        num_warps=min(16, max(1, block // 512)), **overlapped(target_of(table.device)), **OPTIONS,
    )  # fmt: skip
    return out


@triton.jit
def _embed(
    token_ids, slots, table, page_tokens, kv_slots, out, scale,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Of one token."""
    index = tl.program_id(0)
    wait_for_previous(OVERLAP)
    let_next_start(OVERLAP)
    token = tl.load(token_ids + index)
    if token < 0:
        token = tl.load(slots - 1 - token)
    tl.store(page_tokens + tl.load(kv_slots + index), token)
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    embedding = tl.load(table + token.to(tl.int64) * SIZE + at, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(out + index.to(tl.int64) * SIZE + at, embedding.to(out.dtype.element_ty), mask=inside)
