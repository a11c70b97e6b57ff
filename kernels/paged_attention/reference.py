"""Ragged paged attention in plain numpy: the truth that every other implementation is held to."""

import ml_dtypes
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
    sinks: np.ndarray | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Write this step's keys and values into their pages, then let each token attend causally.

    Args:
        q: [tokens, heads, head_dim].
        k, v: [tokens, kv_heads, head_dim].
        kv_pages: [pages, kv_heads, page_size, 2 * head_dim]: of each token its key, then its value. The
            dtype may be narrower than that of k and v.
        rows: which tokens and pages belong together.
        first_page: where this layer's pages begin in `kv_pages`.
        scale: multiplies q @ k.
        window: each token sees at most its `window` last keys, itself included; None sees all.
        soft_cap: scores become `soft_cap * tanh(scores / soft_cap)`.
        sinks: [heads], a score of each head that takes its share of the softmax and has no value.
        k_scale, v_scale: what is stored is key / k_scale and value / v_scale, rounded and kept within
            the range of the pool's dtype.

    Returns:
        ([tokens, heads, head_dim] float32, a copy of `kv_pages` with the new keys and values). Rows of
        the first that belong to no row are zero.
    """
    kv_pages = kv_pages.copy()
    page_size, head_dim = kv_pages.shape[2], q.shape[2]
    num_tokens = int(rows.cu_q_lens[rows.num_rows])
    page, offset = np.divmod(rows.kv_slots[:num_tokens], page_size)
    kv_pages[first_page + page, :, offset, :head_dim] = stored(k[:num_tokens], k_scale, kv_pages.dtype)
    kv_pages[first_page + page, :, offset, head_dim:] = stored(v[:num_tokens], v_scale, kv_pages.dtype)

    out = np.zeros(q.shape, np.float32)
    group = q.shape[1] // k.shape[1]
    for row in range(int(rows.num_rows)):
        start, end = rows.cu_q_lens[row], rows.cu_q_lens[row + 1]
        table = rows.page_indices[rows.page_offsets[row] : rows.page_offsets[row + 1]]
        length = int(rows.kv_lens[row])
        kv = (
            kv_pages[first_page + table].astype(np.float32).swapaxes(0, 1)
        )  # [kv_heads, pages, page_size, ..]
        kv = kv.reshape(kv.shape[0], -1, kv.shape[3])[:, :length]
        keys, values = kv[..., :head_dim] * k_scale, kv[..., head_dim:] * v_scale
        for token in range(start, end):
            position = length - (end - token)
            seen = slice(0 if window is None else max(0, position + 1 - window), position + 1)
            for head in range(q.shape[1]):
                scores = keys[head // group, seen] @ q[token, head].astype(np.float32) * scale
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                if sinks is not None:
                    scores = np.append(scores, sinks[head])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[token, head] = weights[: seen.stop - seen.start] @ values[head // group, seen]
    return out, kv_pages


def stored(x: np.ndarray, scale: float, dtype: np.dtype) -> np.ndarray:
    """x / scale as the pool holds it: rounded, and within the range of a one-byte dtype."""
    x = x.astype(np.float32) / scale
    if dtype == np.int8:
        return np.clip(np.rint(x), -127, 127).astype(dtype)
    if dtype.itemsize == 1:
        largest = float(ml_dtypes.finfo(dtype).max)  # float8: a cast alone would make infinities
        return np.clip(x, -largest, largest).astype(dtype)
    return x.astype(dtype)
