"""The beginning of a step in plain PyTorch: what serves on CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embed(
    token_ids: Tensor, slots: Tensor, table: Tensor, page_tokens: Tensor, kv_slots: Tensor,
    *, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """The embeddings of a step's tokens; their ids are written beside the KV pages.

    Args:
        token_ids: [tokens] int32; `-(slot + 1)` stands for what an earlier step sampled into `slot`.
        slots: [slots] int32 token ids.
        table: [vocab, embed].
        page_tokens: [pages * page_size] int32, of which the places `kv_slots` [tokens] are written.
        scale: what every embedding is multiplied by.

    Returns:
        [tokens, embed] of the table's dtype.
    """
    tokens = torch.where(token_ids < 0, slots[(-1 - token_ids).clamp(min=0)], token_ids)
    page_tokens[kv_slots] = tokens
    embeddings = F.embedding(tokens, table)
    return embeddings if scale == 1 else embeddings * scale
