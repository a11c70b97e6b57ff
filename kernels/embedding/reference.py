"""The beginning of a step in plain numpy: the truth that every other implementation is held to."""

import numpy as np


def embed(
    token_ids: np.ndarray, slots: np.ndarray, table: np.ndarray, page_tokens: np.ndarray,
    kv_slots: np.ndarray, *, scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Arguments as in `torch_ref.py`.

    Returns:
        (embeddings [tokens, embed] float32, a copy of `page_tokens` with the new ids).
    """
    tokens = np.array([slots[-1 - each] if each < 0 else each for each in token_ids])
    page_tokens = page_tokens.copy()
    page_tokens[kv_slots] = tokens
    return table[tokens].astype(np.float32) * scale, page_tokens
