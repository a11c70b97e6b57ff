"""What matchers share that make masks of their own."""

from collections.abc import Iterable

import numpy as np

from .grammar import Mask


def only(ids: Iterable[int], vocab_size: int) -> Mask:
    """A mask that allows `ids` alone, of a vocabulary of this size."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.bool_)
    bits[np.fromiter(ids, np.int64)] = True
    return np.packbits(bits, bitorder="little").view(np.uint32)


def allows(mask: Mask, token_id: int) -> bool:
    """Whether `mask` allows a token."""
    return bool(mask[token_id // 32] >> np.uint32(token_id % 32) & np.uint32(1))


def clear_beyond(mask: Mask, vocab_size: int) -> None:
    """Allow none of the ids that the last word has beyond the vocabulary."""
    if vocab_size % 32:
        mask[-1] &= np.uint32((1 << vocab_size % 32) - 1)


def only_token(mask: Mask) -> list[int]:
    """The one token that a mask allows; empty if it allows several or none."""
    words = np.flatnonzero(mask)
    if len(words) != 1:
        return []
    word = int(mask[words[0]])
    return [int(words[0]) * 32 + word.bit_length() - 1] if word & (word - 1) == 0 else []
