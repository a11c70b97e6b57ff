"""Ragged paged attention in plain numpy: the truth that every other implementation is held to."""

import numpy as np

from .rows import RaggedRows


def ragged_paged_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    kv_pages: np.ndarray,
    rows: RaggedRows,
    *,
    first_page: int = 0,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Write this step's keys and values into their pages, then let each token attend causally.

    Args:
        q: [tokens, heads, head_dim].
        k, v: [tokens, kv_heads, head_dim].
        kv_pages: [pages, page_size, 2 * kv_heads, head_dim], keys on even and values on odd heads.
        rows: which tokens and pages belong together.
        first_page: where this layer's pages begin in `kv_pages`.
        scale: multiplies q @ k.
        window: each token sees at most its `window` last keys, itself included; None sees all.
        soft_cap: scores become `soft_cap * tanh(scores / soft_cap)`.

    Returns:
        ([tokens, heads, head_dim] float32, a copy of `kv_pages` with the new keys and values). Rows of
        the first that belong to no row are zero.
    """
    kv_pages = kv_pages.copy()
    pages, page_size, _, head_dim = kv_pages.shape
    flat = kv_pages.reshape(pages * page_size, -1, head_dim)
    num_tokens = int(rows.cu_q_lens[rows.num_rows])
    slots = rows.kv_slots[:num_tokens] + first_page * page_size
    flat[slots, 0::2] = k[:num_tokens]
    flat[slots, 1::2] = v[:num_tokens]

    out = np.zeros(q.shape, np.float32)
    group = q.shape[1] // k.shape[1]
    for row in range(int(rows.num_rows)):
        start, end = rows.cu_q_lens[row], rows.cu_q_lens[row + 1]
        table = rows.page_indices[rows.page_offsets[row] : rows.page_offsets[row + 1]]
        length = int(rows.kv_lens[row])
        kv = kv_pages[first_page + table].reshape(-1, *kv_pages.shape[2:])[:length].astype(np.float32)
        keys, values = kv[:, 0::2], kv[:, 1::2]
        for token in range(start, end):
            position = length - (end - token)
            low = 0 if window is None else max(0, position + 1 - window)
            for head in range(q.shape[1]):
                scores = keys[low : position + 1, head // group] @ q[token, head].astype(np.float32) * scale
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores - scores.max())
                out[token, head] = weights / weights.sum() @ values[low : position + 1, head // group]
    return out, kv_pages
