"""Every implementation of ragged paged attention against the numpy reference, on ragged batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from radixmesh.kernels.paged_attention import reference, xla
from radixmesh.kernels.paged_attention.rows import RaggedRows

# (query length, keys in all) of each row, decode rows first
BATCHES = {
    "decode": [(1, 1), (1, 17), (1, 300), (1, 64)],
    "prefill": [(40, 40), (3, 90), (150, 420)],
    "mixed": [(1, 5), (1, 129), (30, 30), (2, 2), (17, 200)],
    "one token": [(1, 1)],
}


def ragged_case(batch, *, page_size, heads, kv_heads, head_dim, pad_rows, pad_tokens, seed=0):
    """A random batch with scattered pages; the pool is two layers deep and the second is used."""
    rng = np.random.default_rng(seed)
    num_rows, tokens = len(batch), sum(q for q, _ in batch)
    counts = [-(-kv // page_size) for _, kv in batch]
    layer_pages = sum(counts) + 3
    table = rng.permutation(layer_pages - 1)[: sum(counts)].astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    slots = np.full(tokens + pad_tokens, (layer_pages - 1) * page_size)
    cu = np.concatenate([[0], np.cumsum([q for q, _ in batch])])
    for row, (q_len, kv_len) in enumerate(batch):
        at = np.arange(kv_len - q_len, kv_len)
        slots[cu[row] : cu[row + 1]] = table[offsets[row] + at // page_size] * page_size + at % page_size
    rows = RaggedRows(
        kv_slots=slots.astype(np.int32),
        cu_q_lens=np.pad(cu, (0, pad_rows), mode="edge").astype(np.int32),
        kv_lens=np.pad([kv for _, kv in batch], (0, pad_rows)).astype(np.int32),
        page_indices=np.pad(table, (0, 9)),
        page_offsets=np.pad(offsets, (0, pad_rows), mode="edge").astype(np.int32),
        num_rows=np.int32(num_rows),
        num_decode_rows=np.int32(next((i for i, (q, _) in enumerate(batch) if q > 1), num_rows)),
    )

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    total = tokens + pad_tokens
    qkv = draw(total, heads, head_dim), draw(total, kv_heads, head_dim), draw(total, kv_heads, head_dim)
    return (*qkv, draw(2 * layer_pages, kv_heads, page_size, 2 * head_dim), rows), layer_pages, tokens


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(
    "page_size, heads, kv_heads, head_dim", [(16, 9, 3, 64), (8, 4, 1, 32), (64, 4, 4, 16)]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 20}, {"soft_cap": 3.0}, {"window": 5, "soft_cap": 2.0}, {"sinks": True, "window": 9}],
)
def test_xla_equals_reference(name, page_size, heads, kv_heads, head_dim, options):
    batch = BATCHES[name]
    pad_tokens = 5 + len(batch)
    args, layer_pages, tokens = ragged_case(
        batch,
        page_size=page_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        pad_rows=3,
        pad_tokens=pad_tokens,
    )
    if options.get("sinks"):
        options = dict(options, sinks=np.random.default_rng(1).normal(0, 2, heads).astype(np.float32))
    options = dict(options, first_page=layer_pages, scale=head_dim**-0.5)
    want, want_pages = reference.ragged_paged_attention(*args, **options)
    got, got_pages = jax.jit(lambda *a: xla.ragged_paged_attention(*a, **options))(*args)
    np.testing.assert_allclose(np.asarray(got)[:tokens], want[:tokens], atol=2e-5)
    assert np.isfinite(np.asarray(got)).all()
    # padding tokens write to the dummy page, the last one of the layer
    np.testing.assert_array_equal(np.asarray(got_pages)[: 2 * layer_pages - 1], want_pages[:-1])
    np.testing.assert_array_equal(np.asarray(got_pages)[:layer_pages], args[3][:layer_pages])


@pytest.mark.parametrize("dtype, scale", [("int8", 0.02), ("float8_e4m3fn", 0.5), ("bfloat16", 1.0)])
def test_narrow_pools(dtype, scale):
    """Keys and values out of a narrow pool's range are kept within it, not turned into infinities."""
    batch = BATCHES["mixed"]
    args, layer_pages, tokens = ragged_case(
        batch, page_size=16, heads=4, kv_heads=2, head_dim=32, pad_rows=1, pad_tokens=0
    )
    q, k, v, pool, rows = args
    k[0] *= 1e4
    pool = (pool / scale).clip(-120, 120).astype(jnp.dtype(dtype))
    options = dict(first_page=layer_pages, scale=0.2, k_scale=scale, v_scale=2 * scale)
    want, want_pages = reference.ragged_paged_attention(q, k, v, pool, rows, **options)
    got, got_pages = jax.jit(lambda *a: xla.ragged_paged_attention(*a, **options))(q, k, v, pool, rows)
    np.testing.assert_array_equal(np.asarray(got_pages, np.float32), want_pages.astype(np.float32))
    np.testing.assert_allclose(np.asarray(got), want, atol=1e-4, rtol=1e-4)
