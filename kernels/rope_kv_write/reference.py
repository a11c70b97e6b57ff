"""Rotary embedding and KV write in plain numpy: the truth that every other implementation is held to."""

import numpy as np

from ..paged_attention.reference import stored
from ..rms_norm.reference import rms_norm


def rope_and_write(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cos_sin: np.ndarray,
    positions: np.ndarray,
    kv_pages: np.ndarray,
    kv_slots: np.ndarray,
    *,
    first_page: int = 0,
    norms: tuple[np.ndarray, np.ndarray, float, float] | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Norm q and k if the model does, rotate both, write k and v into their pages.

    Arguments as in `torch_ref.py`, whose `HeadNorms` is `norms` here: (q's weight, k's, eps, offset).
    Everything is float32 until it is stored.

    Returns:
        (rotated q [tokens, heads, head_dim] float32, a copy of `kv_pages` with the new keys and values).
    """
    if norms is not None:
        q, k = (rms_norm(x, weight, *norms[2:]) for x, weight in ((q, norms[0]), (k, norms[1])))
    cos, sin = np.split(cos_sin[positions][:, None], 2, axis=-1)

    def rotate(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x.astype(np.float32), 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    kv_pages = kv_pages.copy()
    page, offset = np.divmod(kv_slots, kv_pages.shape[2])
    new = [stored(rotate(k), k_scale, kv_pages.dtype), stored(v, v_scale, kv_pages.dtype)]
    kv_pages[first_page + page, :, offset] = np.concatenate(new, axis=-1)
    return rotate(q), kv_pages
