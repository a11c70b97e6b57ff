"""The TPU kernel in interpret mode, with race detection, against the numpy reference."""

import jax
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import (
    interpret_pallas_call,
)  # where the race detector leaves its finding
from jax.experimental.pallas import tpu as pltpu

from radixmesh.kernels.paged_attention import pallas_tpu, reference
from radixmesh.kernels.paged_attention.tpu_blocks import BlockSizes
from tests.kernels.test_paged_attention import ragged_case

# (query length, keys in all) of each row, decode rows first
BATCHES = {
    "decode": [(1, 1), (1, 17), (1, 70), (1, 64), (1, 33)],
    "prefill": [(20, 20), (3, 50), (37, 90)],
    "mixed": [(1, 5), (1, 66), (18, 18), (2, 2), (17, 60)],
}


def interpreted(args, *, chip="v5e", **options):
    """The kernel's result, and whether the detector saw a race."""
    params = pltpu.InterpretParams(detect_races=True)
    run = jax.jit(lambda *a: pallas_tpu.ragged_paged_attention(*a, chip=chip, interpret=params, **options))
    out, pages = jax.tree.map(np.asarray, run(*args))
    found = interpret_pallas_call.races
    assert found is not None
    return out, pages, found.races_found


def small_sizes(**changes):
    """So small that short rows take several blocks and tiles."""
    sizes = dict(
        kv_heads=1, depth=2, decode_pages=2, decode_rows=2, prefill_pages=2, prefill_tokens=16, write_pages=1
    )
    return BlockSizes(**{**sizes, **changes})


@pytest.mark.parametrize("name", BATCHES)
def test_equals_reference_without_races(name):
    args, layer_pages, tokens = ragged_case(
        BATCHES[name], page_size=16, heads=4, kv_heads=2, head_dim=128, pad_rows=2, pad_tokens=3
    )
    options = dict(first_page=layer_pages, scale=128**-0.5)
    want, want_pages = reference.ragged_paged_attention(*args, **options)
    got, got_pages, races = interpreted(args, sizes=small_sizes(kv_heads=2), **options)
    assert not races
    np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_array_equal(got_pages[:-1], want_pages[:-1])  # the last one is what padding writes to
