"""Rotary embedding and KV write in plain PyTorch: what serves on CPU."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..rms_norm.torch_ref import rms_norm


class HeadNorms(NamedTuple):
    """RMSNorm over each head of q and k, before they are rotated."""

    q: Tensor  # [head_dim]
    k: Tensor  # [head_dim]
    eps: float
    offset: float


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

    Args:
        q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim]. Only the last axis need be
            contiguous: all three may be views of one matrix product.
        cos_sin: [context, head_dim] float32: of each position the cosines, then the sines. Su et al. 2021.
        positions: [tokens] int32.
        kv_pages: [pages, kv_heads, page_size, 2 * head_dim], changed in place.
        kv_slots: [tokens] int32, flat positions `page * page_size + offset` counted from `first_page`.
        k_scale, v_scale: as in `paged_attention/reference.py`.

    Returns:
        The rotated q, which may lie where q lay.
    """
    if norms is not None:
        q, k = (rms_norm(x, w, norms.eps, norms.offset) for x, w in ((q, norms.q), (k, norms.k)))
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    kv = torch.cat([_stored(_rotate(k, cos, sin), k_scale, kv_pages), _stored(v, v_scale, kv_pages)], dim=-1)
    page_size = kv_pages.shape[2]
    page = kv_slots // page_size + first_page
    heads = torch.arange(kv_pages.shape[1], device=kv_pages.device)
    kv_pages[page[:, None], heads, (kv_slots % page_size)[:, None]] = kv
    return _rotate(q, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _stored(x: Tensor, scale: float, kv_pages: Tensor) -> Tensor:
    """x / scale as the pool holds it: rounded, and within the range of a one-byte dtype."""
    dtype = kv_pages.dtype
    if dtype.itemsize > 1:
        return (x / scale).to(dtype)
    x = x.float() / scale
    if not dtype.is_floating_point:
        return x.round().clamp(-127, 127).to(dtype)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)
