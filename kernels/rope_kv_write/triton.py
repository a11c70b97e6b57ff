"""Rotary embedding and KV write in Triton: one launch from the projection's output to q and the pages."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..overlap import let_next_start, overlapped, wait_for_previous
from ..tuning import OPTIONS, target_of
from .torch_ref import HeadNorms

_HEADS = 8  # that one program takes


def rope_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    kv_pages: Tensor,
    kv_slots: Tensor,
    *,
    first_page: int = 0,
    norms: HeadNorms | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Norm q and k if the model does, rotate both, write k and v into their pages.

    Arguments as in `torch_ref.py`; q, k and v have heads side by side, as views of one product have.
    Everything is float32 until it is stored. The result is a new tensor.
    """
    (tokens, heads, head_dim), kv_heads = q.shape, k.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    q_norm, k_norm, eps, offset = (q, k, 0.0, 0.0) if norms is None else norms
    size = kv_pages.element_size()
    limit = 0.0
    if size == 1:
        limit = torch.finfo(kv_pages.dtype).max if kv_pages.dtype.is_floating_point else 127.0
    q_blocks, kv_blocks = triton.cdiv(heads, _HEADS), triton.cdiv(kv_heads, _HEADS)
    _rope[(q_blocks + 2 * kv_blocks, tokens)](
        q, k, v, cos_sin, positions, kv_pages, kv_slots, out, q_norm, k_norm, eps, offset, first_page,
        1 / k_scale, 1 / v_scale, limit, q.stride(0), k.stride(0), v.stride(0),
        NORM=norms is not None, LIMIT=size == 1, ROUND=not kv_pages.dtype.is_floating_point,
        Q_HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, HALF_PAD=triton.next_power_of_2(head_dim // 2),
        PAGE_SIZE=kv_pages.shape[2], Q_BLOCKS=q_blocks, KV_BLOCKS=kv_blocks, HEADS=_HEADS, num_warps=4,
        **overlapped(target_of(q.device)), **OPTIONS,
    )  # fmt: skip
    return out


@triton.jit
def _halves(x, at, inside, HALF: tl.constexpr):
    """First and second halves of heads, float32."""
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    return first, tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _rotated(
    first, second, weight, cos_sin, position, eps, offset,
    NORM: tl.constexpr, HEAD_DIM: tl.constexpr, HALF_PAD: tl.constexpr,
):  # fmt: skip
    """Halves of heads, normed if NORM, then rotated to `position`."""
    half: tl.constexpr = HEAD_DIM // 2
    dims = tl.arange(0, HALF_PAD)
    inside = dims < half
    if NORM:
        scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / HEAD_DIM + eps)[:, None]
        low, high = _halves(weight, dims, inside, half)
        first = first * scale * (offset + low)[None, :]
        second = second * scale * (offset + high)[None, :]
    cos, sin = _halves(cos_sin, position.to(tl.int64) * HEAD_DIM + dims, inside, half)
    cos, sin = cos[None, :], sin[None, :]
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _stored(x, inverse_scale, limit, LIMIT: tl.constexpr, ROUND: tl.constexpr, dtype: tl.constexpr):
    """x times `inverse_scale` as the pool holds it."""
    x = x * inverse_scale
    if LIMIT:
        x = tl.minimum(tl.maximum(x, -limit), limit)
    if ROUND:
        x = (x + 12582912.0) - 12582912.0  # 1.5 * 2**23: no fraction fits beside it; ties to even
    return x.to(dtype)


@triton.jit(do_not_specialize=["first_page"])
def _rope(
    q, k, v, cos_sin, positions, kv_pages, kv_slots, out, q_norm, k_norm, eps, offset, first_page,
    k_inverse, v_inverse, limit, q_stride, k_stride, v_stride,
    NORM: tl.constexpr, LIMIT: tl.constexpr, ROUND: tl.constexpr, Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF_PAD: tl.constexpr, PAGE_SIZE: tl.constexpr,
    Q_BLOCKS: tl.constexpr, KV_BLOCKS: tl.constexpr, HEADS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Some heads of one token: of q first, then of k, then of v."""
    half: tl.constexpr = HEAD_DIM // 2
    block = tl.program_id(0)
    token = tl.program_id(1).to(tl.int64)
    lines = tl.arange(0, HEADS)
    dims = tl.arange(0, HALF_PAD)[None, :]
    position = tl.load(positions + token)
    let_next_start(OVERLAP)  # attention finds its share of the work, and asks for old keys, meanwhile
    wait_for_previous(OVERLAP)
    if block < Q_BLOCKS:
        heads = (block * HEADS + lines)[:, None]
        inside = (heads < Q_HEADS) & (dims < half)
        first, second = _halves(q + token * q_stride, heads * HEAD_DIM + dims, inside, half)
        first, second = _rotated(
            first, second, q_norm, cos_sin, position, eps, offset, NORM, HEAD_DIM, HALF_PAD
        )
        to = out + token * (Q_HEADS * HEAD_DIM) + heads * HEAD_DIM + dims
        tl.store(to, first.to(out.dtype.element_ty), mask=inside)
        tl.store(to + half, second.to(out.dtype.element_ty), mask=inside)
    else:
        dtype: tl.constexpr = kv_pages.dtype.element_ty
        slot = tl.load(kv_slots + token)
        page = (first_page + slot // PAGE_SIZE).to(tl.int64)
        heads = ((block - Q_BLOCKS) % KV_BLOCKS * HEADS + lines)[:, None]
        inside = (heads < KV_HEADS) & (dims < half)
        line = (page * KV_HEADS + heads) * PAGE_SIZE + slot % PAGE_SIZE
        keys = kv_pages + line * (2 * HEAD_DIM) + dims
        if block < Q_BLOCKS + KV_BLOCKS:
            first, second = _halves(k + token * k_stride, heads * HEAD_DIM + dims, inside, half)
            first, second = _rotated(
                first, second, k_norm, cos_sin, position, eps, offset, NORM, HEAD_DIM,
                HALF_PAD,
            )  # fmt: skip
            tl.store(keys, _stored(first, k_inverse, limit, LIMIT, ROUND, dtype), mask=inside)
            tl.store(keys + half, _stored(second, k_inverse, limit, LIMIT, ROUND, dtype), mask=inside)
        else:
            first, second = _halves(v + token * v_stride, heads * HEAD_DIM + dims, inside, half)
            values = keys + HEAD_DIM
            tl.store(values, _stored(first, v_inverse, limit, LIMIT, ROUND, dtype), mask=inside)
            tl.store(values + half, _stored(second, v_inverse, limit, LIMIT, ROUND, dtype), mask=inside)
