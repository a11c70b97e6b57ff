"""The PyTorch twins of the Triton kernels against numpy."""

from typing import Any

import numpy as np
import pytest
import torch

from radixmesh.kernels.embedding.torch_ref import embed
from radixmesh.kernels.gated_activation.torch_ref import gated_activation
from radixmesh.kernels.linear.torch_ref import Norm, linear
from radixmesh.kernels.paged_attention import reference
from radixmesh.kernels.paged_attention.torch_ref import ragged_paged_attention
from radixmesh.kernels.rms_norm.torch_ref import rms_norm
from radixmesh.kernels.rope_kv_write.torch_ref import HeadNorms, rope_and_write
from radixmesh.kernels.sampling.torch_ref import choose_tokens, gumbel_noise
from tests.kernels.test_paged_attention import BATCHES, ragged_case

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def t(value: Any) -> torch.Tensor:
    return torch.as_tensor(np.array(value))


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 20}, {"soft_cap": 3.0}, {"window": 5, "soft_cap": 2.0}, {"sinks": True, "window": 9}],
    ids=str,
)
def test_attention(name, options):
    """Pages hold what the reference wrote, and infinities where no token is."""
    args, layer_pages, tokens = ragged_case(
        BATCHES[name], page_size=16, heads=6, kv_heads=2, head_dim=32, pad_rows=2, pad_tokens=3
    )
    if options.get("sinks"):
        options = dict(options, sinks=draw(6))
    options = dict(options, first_page=layer_pages, scale=0.2, k_scale=0.5, v_scale=2.0)
    want, pages = reference.ragged_paged_attention(*args, **options)
    rows = args[4]
    for row in range(int(rows.num_rows)):
        last = rows.page_indices[rows.page_offsets[row + 1] - 1] + layer_pages
        pages[last, :, (rows.kv_lens[row] - 1) % 16 + 1 :, 32:] = np.inf
    if "sinks" in options:
        options["sinks"] = torch.as_tensor(options["sinks"])
    got = ragged_paged_attention(t(args[0]), t(pages), type(rows)(*map(t, rows[:-2])), **options)
    np.testing.assert_allclose(got.numpy()[:tokens], want[:tokens], atol=2e-5)


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_embeddings_of_given_and_sampled_tokens(scale):
    table, pages = draw(50, 8), torch.full((40,), 99, dtype=torch.int32)
    words = [t(np.array(each, np.int32)) for each in ([5, -1, 49, -3], [7, 49, 0], [9, 3, 0, 39])]
    got = embed(words[0], words[1], t(table), pages, words[2], scale=scale)
    np.testing.assert_allclose(got.numpy(), table[[5, 7, 49, 0]] * scale, rtol=1e-6)
    assert pages[[9, 3, 0, 39]].tolist() == [5, 7, 49, 0] and (pages == 99).sum() == 36


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype, scale", [("float32", 1.0), ("int8", 0.02), ("float8_e4m3fn", 0.05)])
def test_rope_and_write(normed, dtype, scale):
    tokens, heads, kv_heads, head_dim, page_size = 5, 4, 2, 8, 4
    qkv = torch.as_tensor(draw(tokens, heads + 2 * kv_heads, head_dim))
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    given = [each.numpy().copy() for each in (q, k, v)]
    positions, slots = np.array([3, 9, 0, 30, 4]), np.array([5, 6, 15, 0, 11])
    cos_sin = draw(31, head_dim)
    weights = draw(2, head_dim)
    norms = HeadNorms(t(weights[0]), t(weights[1]), 1e-3, 1.0) if normed else None
    pages = torch.zeros(9, kv_heads, page_size, 2 * head_dim).to(getattr(torch, dtype))
    got = rope_and_write(
        q, k, v, t(cos_sin), t(positions.astype(np.int32)), pages, t(slots.astype(np.int32)),
        first_page=4, norms=norms, k_scale=scale, v_scale=2 * scale,
    )  # fmt: skip

    def rotated(x, weight):
        if normed:
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * (1 + weight)
        cos, sin = np.split(cos_sin[positions][:, None], 2, axis=-1)
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def stored(x):
        limit = {"int8": 127, "float8_e4m3fn": 448}.get(dtype, np.inf)
        return torch.as_tensor(np.clip(np.rint(x) if dtype == "int8" else x, -limit, limit)).to(pages.dtype)

    np.testing.assert_allclose(got.numpy(), rotated(given[0], weights[0]), atol=1e-5)
    want = torch.zeros_like(pages)
    for token, slot in enumerate(slots):
        want[4 + slot // page_size, :, slot % page_size] = torch.cat(
            [stored(rotated(given[1], weights[1])[token] / scale), stored(given[2][token] / (2 * scale))], -1
        )
    np.testing.assert_allclose(pages.float().numpy(), want.float().numpy(), atol=1e-5)


def test_norms_and_gates():
    x, residual, weight = draw(7, 24), draw(7, 24), draw(24)
    want = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-2) * (1 + weight)
    np.testing.assert_allclose(rms_norm(t(x), t(weight), 1e-2, 1.0).numpy(), want, atol=1e-5)
    total = t(residual)
    assert rms_norm(t(x), t(weight), 1e-2, 1.0, onto=total) is total
    np.testing.assert_allclose(total.numpy(), residual + want, atol=1e-5)
    gate, up = np.split(x, 2, axis=-1)
    silu = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(gated_activation(t(x), "silu").numpy(), silu, atol=1e-6)
    gelu = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
    np.testing.assert_allclose(gated_activation(t(x), "gelu_tanh").numpy(), gelu, atol=1e-6)


# Sampling

VOCAB, DRAWS = 40, 4000


def choose(logits, seeds, **options):
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    rows = len(seeds)
    arrays = [
        np.broadcast_to(np.asarray(value, np.int32 if name == "top_k" else np.float32), rows)
        for name, value in neutral.items()
    ]
    seeds = np.asarray(seeds, np.uint32).view(np.int32)
    logits = np.broadcast_to(logits, (rows, VOCAB))
    return choose_tokens(*map(t, (logits, *arrays, seeds, np.full(rows, 9, np.int32)))).numpy()


def expected_probs(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Softmax of what top-k, then top-p, then min-p leave, by sorting."""
    probs = np.exp((logits - logits.max()) / temperature)
    probs /= probs.sum()
    order = np.argsort(-probs)
    if top_k:
        probs[order[top_k:]] = 0
        probs /= probs.sum()
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= top_p]] = 0
    probs[probs < min_p * probs.max()] = 0
    return probs / probs.sum()


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 5}, {"temperature": 1.3, "top_p": 0.7}, {"min_p": 0.2},
     {"temperature": 0.8, "top_k": 8, "top_p": 0.6},
     {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
     {"top_k": 1, "top_p": 0.5}],
    ids=str,
)  # fmt: skip
def test_draws_follow_the_cut_distribution(options):
    logits = draw(VOCAB) * 2
    want = expected_probs(logits.astype(np.float64), **options)
    counted = np.bincount(choose(logits, np.arange(DRAWS), **options), minlength=VOCAB) / DRAWS
    assert set(np.flatnonzero(counted)) <= set(np.flatnonzero(want))
    # five standard deviations of a binomial, and a little for tokens that are next to never drawn
    assert (np.abs(counted - want) <= 5 * np.sqrt(want * (1 - want) / DRAWS) + 1e-3).all()


def test_rows_are_cut_each_by_its_own_and_seeds_decide():
    logits = draw(6, VOCAB) * 2
    got = choose(
        logits, [2**32 - 1] * 6, temperature=[0, 1, 1, 1, 0, 1], top_k=[0, 1, 0, 0, 3, 0],
        top_p=[1, 1, 1e-6, 1, 0.5, 1], min_p=[0, 0, 0, 1, 0, 0],
    )  # fmt: skip
    assert (got[:5] == logits.argmax(-1)[:5]).all()  # each in its way leaves one token
    assert choose(logits[5:], [2**32 - 1])[0] == got[5]


def test_noise_is_gumbel_and_told_by_seed_and_index():
    seeds = t(np.array([1, 2, 1, -1], np.int32))
    indices = t(np.array([5, 5, 6, 2**31 - 1], np.int32))
    noise = gumbel_noise(seeds, indices, 20_000).numpy()
    quantiles = np.linspace(0.01, 0.99, 50)
    for row in noise:
        np.testing.assert_allclose(np.quantile(np.exp(-np.exp(-row)), quantiles), quantiles, atol=0.02)
    apart = np.corrcoef(noise) - np.eye(4)
    lagged = [np.corrcoef(row[1:], row[:-1])[0, 1] for row in noise]
    assert np.abs(apart).max() < 0.03 and np.abs(lagged).max() < 0.03
    alone = gumbel_noise(seeds[1:2], indices[1:2], 20_000)
    np.testing.assert_array_equal(alone.numpy()[0], noise[1])


def test_products_with_what_stands_around_them():
    x, weight, bias, residual, scale = draw(5, 24), draw(16, 24), draw(16), draw(5, 16), draw(24)
    y = x @ weight.T + bias
    np.testing.assert_allclose(linear(t(x), t(weight), t(bias)).numpy(), y, atol=1e-5)
    total = t(residual)
    assert linear(t(x), t(weight), t(bias), onto=total) is total
    np.testing.assert_allclose(total.numpy(), residual + y, atol=1e-5)
    normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-2) * (1 + scale)
    gate, up = np.split(normed @ weight.T, 2, axis=-1)
    got = linear(t(x), t(weight), norm=Norm(t(scale), 1e-2, 1.0), gate="silu")
    np.testing.assert_allclose(got.numpy(), gate / (1 + np.exp(-gate)) * up, atol=1e-4)
