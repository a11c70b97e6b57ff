"""The bits of masks against Python's own sets and integers."""

import random

import numpy as np
import pytest

from radixmesh.engine.grammar.masks import ids_of, mask_of, only_token


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 300, 49_152])
def test_a_mask_is_the_set_of_its_ids(vocab_size: int) -> None:
    draw = random.Random(vocab_size)
    for count in {0, 1, min(7, vocab_size), vocab_size}:
        ids = draw.sample(range(vocab_size), count)
        mask = mask_of(ids, vocab_size)
        assert (mask.dtype, len(mask)) == (np.uint32, (vocab_size + 31) // 32)
        assert int.from_bytes(mask.astype("<u4").tobytes(), "little") == sum(1 << index for index in ids)
        assert ids_of(mask).tolist() == sorted(ids)
        assert only_token(mask) == (ids if count == 1 else [])


def test_two_tokens_of_one_word_are_not_alone() -> None:
    assert only_token(mask_of([64, 95], 128)) == []
    assert only_token(mask_of([31], 128)) == [31]
