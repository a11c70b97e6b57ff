"""Block sizes of the TPU kernel: the rule fits whatever the shape, the table's entries are legal."""

import json
import re
from itertools import product
from pathlib import Path

import pytest

from radixmesh.kernels.paged_attention import tpu_blocks
from radixmesh.kernels.paged_attention.tpu_blocks import MIB, VMEM_MIB, Shape, rule_sizes, vmem_bytes

# heads, kv_heads, head_dim
HEADS = [(1, 1, 64), (9, 3, 64), (71, 1, 64), (4, 1, 128), (32, 8, 128), (64, 8, 128), (40, 8, 128)]
HEADS += [(16, 16, 128), (128, 8, 128), (8, 4, 256), (16, 1, 256)]


def shape_of(heads, kv_heads, head_dim=128, page_size=64, dtype="bfloat16", tokens=2048):
    pool_itemsize = {"bfloat16": 2, "int8": 1}[dtype]
    return Shape(tokens, heads, kv_heads, head_dim, page_size, dtype, pool_itemsize, 2)


@pytest.mark.parametrize("chip", VMEM_MIB)
def test_the_rule_fits_every_shape(chip) -> None:
    grid = product(HEADS, (16, 64, 256), ("bfloat16", "int8"), (1, 16, 500, 8192))
    for (heads, kv_heads, head_dim), page_size, dtype, tokens in grid:
        shape = shape_of(heads, kv_heads, head_dim, page_size, dtype, tokens)
        sizes = rule_sizes(chip, shape)
        assert vmem_bytes(shape, sizes) <= VMEM_MIB[chip] * MIB // 2, (shape, sizes)
        assert kv_heads % sizes.kv_heads == 0
        assert sizes.prefill_tokens >= 16 and sizes.prefill_tokens & (sizes.prefill_tokens - 1) == 0
        assert sizes.depth >= 2 and min(vars(sizes).values()) >= 1


def test_larger_memory_is_used() -> None:
    shape = shape_of(32, 8)
    assert vmem_bytes(shape, rule_sizes("v6e", shape)) > 2 * vmem_bytes(shape, rule_sizes("v4", shape))


def test_every_entry_is_one_of_the_ladder_for_its_shape() -> None:
    table = json.loads(Path(tpu_blocks.__file__).with_name("tpu_blocks.json").read_text())
    assert table
    for key, sizes in table.items():
        match = re.fullmatch(r"(\w+), (\w+), (\d+)/(\d+) heads of (\d+), page (\d+)", key)
        assert match, key
        chip, dtype = match[1], "int8" if match[2].startswith("float8") else match[2]
        heads, kv_heads, head_dim, page_size = map(int, match.groups()[2:])
        shape = shape_of(heads, kv_heads, head_dim, page_size, dtype)
        ladder = tpu_blocks.ladder(chip, shape)
        while (step := next(ladder)) != tpu_blocks.BlockSizes(*sizes):
            assert vmem_bytes(shape, step) > VMEM_MIB[chip] * MIB // 2, f"{key}: the rule does better"


def test_a_tile_is_no_larger_than_the_tokens(monkeypatch) -> None:
    entry = tpu_blocks.BlockSizes(8, 4, 8, 8, 8, 512, 2)
    monkeypatch.setattr(tpu_blocks, "_table", lambda: {"v6e, bfloat16, 32/8 heads of 128, page 64": entry})
    assert tpu_blocks.chosen_sizes("v6e", shape_of(32, 8, tokens=2048)) == entry
    assert tpu_blocks.chosen_sizes("v6e", shape_of(32, 8, tokens=100)).prefill_tokens == 64
    other = shape_of(32, 8, page_size=16)
    assert tpu_blocks.chosen_sizes("v6e", other) == rule_sizes("v6e", other)
