"""The TPU kernel in interpret mode, with race detection, against the numpy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import (
    interpret_pallas_call,
)  # where the race detector leaves its finding
from jax.experimental.pallas import tpu as pltpu

from radixmesh.kernels.paged_attention import pallas_tpu, reference, tpu_stream
from radixmesh.kernels.paged_attention.tpu_blocks import LANES, TABLE_ROOM, BlockSizes
from tests.kernels.test_paged_attention import ragged_case

# (query length, keys in all) of each row, decode rows first
BATCHES = {
    "decode": [(1, 1), (1, 17), (1, 70), (1, 64), (1, 33)],
    "prefill": [(20, 20), (3, 50), (37, 90)],
    "mixed": [(1, 5), (1, 66), (18, 18), (2, 2), (17, 60), (1, 40)],
    "nothing": [],
}
# so small that short rows take several blocks and tiles
SMALL = dict(
    kv_heads=1, depth=2, decode_pages=2, decode_rows=2, prefill_pages=2, prefill_tokens=16, write_pages=1
)
# batch, heads, kv_heads, head_dim, page_size, dtype of the pool, options, changes to SMALL
CASES = [
    ("decode", 4, 2, 128, 16, "float32", {}, {"kv_heads": 2}),
    ("decode", 4, 1, 64, 16, "float32", {"window": 20, "soft_cap": 3.0, "sinks": True}, {}),
    ("decode", 3, 3, 256, 16, "bfloat16", {"soft_cap": 3.0}, {"kv_heads": 3, "depth": 3}),
    ("decode", 8, 2, 64, 64, "int8", {"window": 9}, {"decode_pages": 1}),
    ("decode", 2, 1, 128, 32, "float8_e4m3fn", {"sinks": True}, {"decode_rows": 8}),
    ("prefill", 4, 2, 128, 16, "float32", {"window": 20}, {"kv_heads": 2, "depth": 4}),
    ("prefill", 9, 3, 64, 16, "float32", {"sinks": True, "window": 5}, {"write_pages": 2}),
    ("prefill", 2, 2, 256, 64, "float32", {"soft_cap": 2.0}, {"prefill_pages": 1, "prefill_tokens": 32}),
    ("prefill", 4, 1, 128, 16, "int8", {}, {"write_pages": 3, "prefill_pages": 4}),
    ("prefill", 2, 1, 64, 32, "float8_e4m3fn", {}, {}),
    ("prefill", 4, 4, 64, 64, "bfloat16", {}, {"depth": 3}),
    ("mixed", 4, 2, 128, 16, "float32", {}, {}),
    ("mixed", 6, 2, 64, 16, "float32", {"window": 9, "soft_cap": 3.0}, {"kv_heads": 2, "depth": 3}),
    ("mixed", 2, 1, 256, 32, "float32", {"sinks": True}, {"decode_pages": 1, "prefill_pages": 3}),
    ("mixed", 4, 1, 128, 64, "bfloat16", {"window": 33}, {"prefill_tokens": 64}),
    ("mixed", 3, 1, 64, 16, "int8", {"sinks": True}, {"kv_heads": 1}),
    ("mixed", 4, 2, 128, 16, "float8_e4m3fn", {"soft_cap": 9.0}, {"kv_heads": 2}),
    ("nothing", 4, 2, 128, 16, "float32", {}, {}),
]
POOL_SCALES = {"int8": 0.02, "float8_e4m3fn": 0.5}


def case(batch, heads, kv_heads, head_dim, page_size, dtype, options, pad_rows=2):
    """Arguments of one call, and the page of its pool that padding tokens may write to."""
    args, layer_pages, _ = ragged_case(
        batch,
        page_size=page_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        pad_rows=pad_rows,
        pad_tokens=3,
    )
    q, k, v, pool, rows = args
    options = dict(options, first_page=layer_pages, scale=head_dim**-0.5)
    if options.get("sinks"):
        options["sinks"] = np.random.default_rng(1).normal(0, 2, heads).astype(np.float32)
    if scale := POOL_SCALES.get(dtype):
        pool = (pool / scale).clip(-120, 120)
        options |= dict(k_scale=scale, v_scale=2 * scale)
    if dtype == "bfloat16":
        q, k, v = (each.astype(jnp.bfloat16) for each in (q, k, v))
    return (q, k, v, pool.astype(jnp.dtype(dtype)), rows), options


def interpreted(args, *, chip="v5e", interpret=None, **options):
    """The kernel's result, and whether the detector saw a race."""
    params = pltpu.InterpretParams(detect_races=True, **(interpret or {}))

    def call(*args):
        return pallas_tpu.ragged_paged_attention(*args, chip=chip, interpret=params, **options)

    out, pages = jax.tree.map(np.asarray, jax.jit(call)(*args))
    found = interpret_pallas_call.races
    assert found is not None
    return out, pages, found.races_found


def assert_alike(got, got_pages, args, options):
    want, want_pages = reference.ragged_paged_attention(*args, **options)
    tolerance = 2e-2 if args[0].dtype == jnp.bfloat16 else 1e-4
    np.testing.assert_allclose(got.astype(np.float32), want, atol=tolerance, rtol=tolerance)
    np.testing.assert_array_equal(  # the last page is what padding tokens are said to write to
        got_pages[:-1].astype(np.float32), want_pages[:-1].astype(np.float32)
    )


@pytest.mark.parametrize("name, heads, kv_heads, head_dim, page_size, dtype, options, sizes", CASES)
def test_equals_reference_without_races(
    name, heads, kv_heads, head_dim, page_size, dtype, options, sizes
) -> None:
    args, options = case(BATCHES[name], heads, kv_heads, head_dim, page_size, dtype, options)
    got, got_pages, races = interpreted(args, sizes=BlockSizes(**{**SMALL, **sizes}), **options)
    assert not races
    assert_alike(got, got_pages, args, options)


def test_a_table_with_room_is_read_where_it_lies() -> None:
    args, options = case(BATCHES["mixed"], 4, 2, 64, 16, "float32", {})
    *tensors, rows = args
    length = -(-(len(rows.page_indices) + TABLE_ROOM) // LANES) * LANES
    table = np.full(length, 1 << 20, np.int32)  # what no row has must not be used
    table[: len(rows.page_indices)] = rows.page_indices
    roomy = (*tensors, rows._replace(page_indices=table))
    got, got_pages, races = interpreted(roomy, sizes=BlockSizes(**SMALL), table_room=TABLE_ROOM, **options)
    assert not races
    assert_alike(got, got_pages, args, options)


def test_programs_of_two_cores_share_nothing() -> None:
    args, options = case(BATCHES["mixed"], 4, 2, 64, 16, "float32", {})
    got, got_pages, races = interpreted(
        args, sizes=BlockSizes(**SMALL), interpret={"num_cores_or_threads": 2}, **options
    )
    assert not races
    assert_alike(got, got_pages, args, options)


@pytest.mark.parametrize("chip", ["v4", "tpu7x"])
def test_sizes_chosen_by_chip_and_a_batch_without_padding(chip) -> None:
    args, options = case(BATCHES["mixed"], 4, 2, 64, 16, "float32", {}, pad_rows=0)
    got, got_pages, races = interpreted(args, chip=chip, **options)
    assert not races
    assert_alike(got, got_pages, args, options)


def test_one_scanned_body_serves_layers_of_different_windows() -> None:
    args, options = case(BATCHES["mixed"], 2, 1, 64, 16, "float32", {})
    layer_pages, scale = options["first_page"], options["scale"]
    q, k, v, pool, rows = args
    windows, firsts = np.array([1 << 30, 9], np.int32), np.array([0, layer_pages], np.int32)

    def layer(pool, x):
        out, pool = pallas_tpu.ragged_paged_attention(
            q, k, v, pool, rows, first_page=x[0], window=x[1], scale=scale,
            chip="v6e", sizes=BlockSizes(**SMALL), interpret=pltpu.InterpretParams(),
        )  # fmt: skip
        return pool, out

    got_pages, got = jax.jit(lambda pool: jax.lax.scan(layer, pool, (firsts, windows)))(pool)
    want = []
    for window, first in zip(windows, firsts, strict=True):
        out, pool = reference.ragged_paged_attention(
            q, k, v, pool, rows, first_page=int(first), window=int(window), scale=scale
        )
        want.append(out)
    np.testing.assert_allclose(np.asarray(got), want, atol=1e-4)
    dummies = [layer_pages - 1, 2 * layer_pages - 1]
    np.testing.assert_array_equal(np.delete(got_pages, dummies, 0), np.delete(pool, dummies, 0))


@pytest.mark.parametrize("name", ["decode", "mixed"])
def test_broken_numbers_stay_in_their_row(name) -> None:
    """Free pages, dead ends of pages and one row's own keys are NaN: the other rows do not notice."""
    args, options = case(BATCHES[name], 4, 2, 64, 16, "float32", {})
    want, _ = reference.ragged_paged_attention(*args, **options)
    q, k, v, pool, rows = args
    live = np.zeros(pool.shape, bool)
    for row in range(int(rows.num_rows)):
        table = rows.page_indices[rows.page_offsets[row] : rows.page_offsets[row + 1]]
        at = np.arange(rows.kv_lens[row])
        live[options["first_page"] + table[at // 16], :, at % 16] = True
    broken_row = 2
    table = rows.page_indices[rows.page_offsets[broken_row] : rows.page_offsets[broken_row + 1]]
    live[options["first_page"] + table] = False
    pool = np.where(live, pool, np.nan)
    got, _, races = interpreted((q, k, v, pool, rows), sizes=BlockSizes(**SMALL), **options)
    assert not races
    others = np.ones(len(q), bool)
    others[rows.cu_q_lens[broken_row] : rows.cu_q_lens[broken_row + 1]] = False
    np.testing.assert_allclose(got[others], want[others], atol=1e-4)


def test_the_detector_sees_a_missing_wait(monkeypatch) -> None:
    monkeypatch.setattr(tpu_stream.Pages, "wait_pages", lambda *args: None)
    args, options = case(BATCHES["decode"][:3], 2, 1, 64, 16, "float32", {})
    eager = {"dma_execution_mode": "eager"}  # else what nobody waits for never happens
    assert interpreted(args, sizes=BlockSizes(**SMALL), interpret=eager, **options)[2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"chip": "v7x"}, "chip 'v7x' is unknown: one of v4, v5e"),
        ({"head_dim": 96}, "head_dim 96 is neither 64 nor a multiple of 128"),
        ({"page_size": 24}, "page_size 24 is not a power of two from 16 on"),
    ],
)
def test_refusals(changes, message) -> None:
    shapes = {"head_dim": 128, "page_size": 16} | changes
    chip = shapes.pop("chip", "v5e")
    args, options = case(BATCHES["decode"], 2, 1, **shapes, dtype="float32", options={})
    with pytest.raises(ValueError, match=message):
        pallas_tpu.ragged_paged_attention(*args, chip=chip, **options)
