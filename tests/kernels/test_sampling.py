"""The sampling of the PyTorch twin against numpy, which sorts."""

import numpy as np
import pytest
import torch

from radixmesh.kernels.sampling import reference, torch_ref


def test_both_make_the_same_noise_whatever_the_seed():
    seeds, indices = np.array([0, -1, 7, 2**31 - 1], np.int32), np.array([0, 5, -3, 2**31 - 1], np.int32)
    got = torch_ref.gumbel_noise(torch.from_numpy(seeds), torch.from_numpy(indices), 30_000).numpy()
    for row, seed, index in zip(got, seeds, indices, strict=True):
        np.testing.assert_allclose(row, reference.gumbel_noise(seed, index, 30_000), rtol=1e-5, atol=1e-6)


def test_no_noise_is_infinite():
    """Over as many words as there are values of a uniform float, one of each kind turns up."""
    noise = torch_ref.gumbel_noise(torch.tensor([1]).int(), torch.tensor([1]).int(), 1 << 25)
    assert torch.isfinite(noise).all() and noise.max() > 14


@pytest.mark.parametrize(
    "top_k, top_p, min_p", [(0, 1.0, 0.0), (9, 1.0, 0.0), (0, 0.8, 0.0), (30, 0.9, 0.02)]
)
def test_both_choose_the_same_tokens(top_k, top_p, min_p):
    rng = np.random.default_rng(3)
    rows = 40
    logits = 2 * rng.standard_normal((rows, 500)).astype(np.float32)
    logits[:4] = logits[:4].round()
    floats = [np.full(rows, each, np.float32) for each in (0.8, top_p, min_p)]
    words = np.arange(rows, dtype=np.int32)
    args = (logits, floats[0], np.full(rows, top_k, np.int32), floats[1], floats[2], words, words + 5)
    got = torch_ref.choose_tokens(*(torch.from_numpy(each) for each in args))
    np.testing.assert_array_equal(got.numpy(), reference.choose_tokens(*args))
