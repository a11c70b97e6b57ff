"""Ragged paged attention in plain PyTorch, row by row: what serves on CPU."""

import torch
from torch import Tensor

from .rows import RaggedRows


def ragged_paged_attention(
    q: Tensor,
    kv_pages: Tensor,
    rows: RaggedRows,
    *,
    first_page: int = 0,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Let each token attend causally to its row's keys, which are in their pages already.

    Arguments and result as in `reference.py`. The result has q's dtype; sums are float32.
    """
    kv_heads, page_size, head_dim = kv_pages.shape[1], kv_pages.shape[2], q.shape[2]
    out = torch.zeros_like(q)
    starts, lengths, offsets = (each.tolist() for each in (rows.cu_q_lens, rows.kv_lens, rows.page_offsets))
    for row in range(int(rows.num_rows)):
        start, end, length = starts[row], starts[row + 1], lengths[row]
        first = max(length - (end - start) + 1 - window, 0) // page_size if window is not None else 0
        table = rows.page_indices[offsets[row] + first : offsets[row + 1]]
        kv = kv_pages[table + first_page].transpose(0, 1).flatten(1, 2)
        kv = kv[:, : length - first * page_size].float()  # a page may hold anything past the row's end
        keys, values = kv.split(head_dim, dim=-1)  # [kv_heads, keys, head_dim]
        grouped = q[start:end].float().unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
        scores = grouped @ keys[:, None].mT * (scale * k_scale)  # [kv_heads, group, queries, keys]
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        query_at = torch.arange(length - (end - start), length, device=q.device)[:, None]
        key_at = torch.arange(first * page_size, length, device=q.device)
        seen = key_at <= query_at
        if window is not None:
            seen &= key_at > query_at - window
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            sink = sinks.float().view(kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
            weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        attended = weights @ values[:, None] * v_scale
        out[start:end] = attended.permute(2, 0, 1, 3).flatten(1, 2).to(q.dtype)
    return out
