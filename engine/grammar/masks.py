"""Masks as sets of token ids: the one place on the host that knows where a token's bit lies."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .grammar import Mask


def mask_of(token_ids: Iterable[int], vocab_size: int) -> Mask:
    """What allows these tokens of a vocabulary and no others."""
    ids = np.fromiter(token_ids, np.int64)
    mask = np.zeros(-(-vocab_size // 32), np.uint32)
    np.bitwise_or.at(mask, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
    return mask


def ids_of(mask: Mask) -> NDArray[np.int64]:
    """The tokens that a mask allows, in order."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def allows(mask: Mask, token_id: int) -> bool:
    """Whether `mask` allows a token."""
    return bool(mask[token_id // 32] >> np.uint32(token_id % 32) & np.uint32(1))


def only_token(mask: Mask) -> list[int]:
    """The one token that a mask allows; empty if it allows several or none."""
    words = np.flatnonzero(mask)
    if len(words) != 1:
        return []  # as nearly always, and found out without a look at single bits
    ids = ids_of(mask[words])
    return [int(words[0]) * 32 + int(ids[0])] if len(ids) == 1 else []
