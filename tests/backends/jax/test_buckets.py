"""The bucket table: what is compiled is what steps ask for."""

import pytest

from radixmesh.backends.jax.buckets import Part, compiled_shapes, sampler_of, shape_of
from radixmesh.engine.batch import SamplingVariant


@pytest.mark.parametrize("largest", [1, 4, 5, 16, 100, 512, 2048])
def test_every_step_has_a_compiled_shape_that_holds_it(largest: int) -> None:
    rows = min(largest, 64)
    compiled = compiled_shapes(largest, rows)
    assert len(set(compiled)) == len(compiled)
    used = set()
    for tokens in range(1, largest + 1):
        for variant in SamplingVariant:
            shape = shape_of(largest, tokens, variant)
            assert shape in compiled
            assert tokens <= shape.tokens <= max(4 * tokens, 8)
            assert shape.full == (variant == SamplingVariant.FULL)
            used.add(shape)
            half = shape_of(largest, tokens, variant, Part.FORWARD)
            sampler = sampler_of(half, rows)
            assert tokens <= half.tokens <= max(2 * tokens, 4) and min(tokens, rows) <= sampler.tokens
            used |= {half, sampler}
    assert used == set(compiled), "compiled and never used"
