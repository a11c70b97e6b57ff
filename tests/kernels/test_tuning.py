"""Sizes of Triton kernels: what the rules choose fits the card, and what was measured goes before them."""

import itertools
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from radixmesh.kernels import tuning
from radixmesh.kernels.linear.triton import LinearSizes, linear_sizes, summed_sizes
from radixmesh.kernels.paged_attention.triton import DecodeSizes, decode_sizes
from radixmesh.kernels.paged_attention.triton_prefill import PrefillSizes, prefill_sizes
from radixmesh.kernels.tuning import Target

CARDS = ["sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "gfx90a", "gfx942", "gfx950", "gfx1100"]


@pytest.mark.parametrize("architecture", CARDS)
@pytest.mark.parametrize("head_dim", [16, 64, 96, 128, 256])
@pytest.mark.parametrize("kv_bytes", [1, 2, 4])
def test_rules_fit_into_shared_memory(architecture: str, head_dim: int, kv_bytes: int) -> None:
    target, line = Target(architecture, 100), 2 * head_dim * kv_bytes
    for rows in (16, 64):
        decode = decode_sizes(target, head_dim, kv_bytes, rows)
        ahead = (decode.num_stages - 1) // 2
        assert decode.programs * ahead * decode.tile * line <= target.shared_bytes or decode.tile == 16
    prefill = prefill_sizes(target, head_dim, kv_bytes)
    ahead = (prefill.num_stages - 1) // 2
    assert ahead * prefill.tile * line < target.shared_bytes or prefill.tile == 16
    assert all(size & (size - 1) == 0 for size in (decode.tile, prefill.rows, prefill.tile))


@pytest.mark.parametrize("architecture", CARDS)
@pytest.mark.parametrize("rows", [16, 32])
def test_products_fit_into_shared_memory_and_divide_their_matrix(
    architecture: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_table", lambda architecture: {})  # the rules' sizes, not what was measured
    target, none = Target(architecture, 100), []
    for shape in itertools.product((576, 1024, 1536, 4096, 5120, 28672), (576, 1024, 3072, 4096, 14336)):
        for normed, gated in ((True, False), (True, True), (False, False)):
            sizes = linear_sizes(target, shape, rows, normed=normed, gated=gated)
            if sizes is None:
                none.append(shape)
                continue
            columns = sizes.columns << gated
            assert shape[0] % columns == 0 and shape[1] % sizes.depth == 0
            buffered = sizes.num_stages * 2 * sizes.depth * (columns + rows)
            assert target.is_amd or buffered <= target.shared_bytes
        if rows <= 16:
            summed = summed_sizes(target, shape, rows)
            assert summed is not None and summed.depth % (16 * summed.num_warps) == 0
            assert shape[0] % summed.columns == 0 and shape[1] % summed.depth == 0
            buffered = summed.num_stages * 2 * summed.depth * (summed.columns + rows)
            assert target.is_amd or buffered <= target.shared_bytes
    assert all(rows > 16 and shape[0] * shape[1] < 64 << 20 for shape in none)


@pytest.mark.parametrize("head_dim, kv_bytes", [(64, 2), (128, 1), (128, 2)])
def test_two_prefill_programs_fit_into_a_hopper_core(head_dim: int, kv_bytes: int) -> None:
    target = Target("sm_90", 132)
    sizes = prefill_sizes(target, head_dim, kv_bytes)
    keys = ((sizes.num_stages - 1) // 2 + 1) * sizes.tile * 2 * head_dim * kv_bytes
    program = sizes.rows * head_dim * 2 + keys + 1024  # which the system takes
    assert 2 * program <= target.shared_bytes and sizes.num_warps == 4


def test_what_was_measured_goes_before_the_rule() -> None:
    target = Target("sm_90", 132)
    rule = decode_sizes(target, 128, 2, 64)
    entry = {
        "head_dim": 128,
        "kv_bytes": 2,
        "rows": 64,
        "tile": 32,
        "programs": 3,
        "num_warps": 8,
        "num_stages": 9,
        "least": 1,
    }
    with patch.object(tuning, "_table", lambda architecture: {"decode_attention": [entry]}):
        assert decode_sizes(target, 128, 2, 64) == DecodeSizes(32, 3, 8, 9) != rule
        assert decode_sizes(target, 64, 2, 64) != DecodeSizes(32, 3, 8, 9)


def test_tables_hold_what_the_kernels_take() -> None:
    attention = {"head_dim", "kv_bytes"}
    kernels: dict[str, tuple[set[str], Any]] = {
        "decode_attention": (attention | {"rows"}, DecodeSizes),
        "prefill_attention": (attention, PrefillSizes),
        "linear": ({"outputs", "inputs", "rows"}, LinearSizes),
    }
    tables = [json.loads(path.read_text()) for path in Path(tuning.__file__).parent.glob("tuned/*.json")]
    for kernel, entries in (item for table in tables for item in table.items()):
        case, sizes = kernels[kernel]
        for entry in entries:
            assert set(entry) == case | set(sizes._fields)
        assert len({tuple(entry[name] for name in sorted(case)) for entry in entries}) == len(entries)


@pytest.mark.parametrize(
    "path", sorted(Path(tuning.__file__).parent.glob("tuned/*.json")), ids=lambda path: path.stem
)
def test_measured_products_divide_their_matrix_and_fit(path: Path) -> None:
    shared = Target(path.stem, 100).shared_bytes
    for entry in json.loads(path.read_text()).get("linear", []):
        assert entry["outputs"] % entry["columns"] == 0 and entry["inputs"] % entry["depth"] == 0
        tile = 2 * entry["depth"] * (entry["columns"] + entry["rows"])
        assert (entry["num_stages"] - 1) * tile < shared


def test_few_rows_behind_a_norm_go_by_warps_where_that_was_measured() -> None:
    target, shape = Target("sm_90", 132), (3072, 4096)
    entry = {"outputs": 3072, "inputs": 4096, "columns": 32, "depth": 256, "num_warps": 4, "num_stages": 3}
    with patch.object(tuning, "_table", lambda architecture: {}):
        assert summed_sizes(target, shape, 8, normed=True) is None
    with patch.object(tuning, "_table", lambda architecture: {"linear": [entry | {"rows": 8}]}):
        assert summed_sizes(target, shape, 8, normed=True) == LinearSizes(32, 256, 4, 3)
    with patch.object(tuning, "_table", lambda architecture: {"linear": [entry | {"rows": 16}]}):
        assert summed_sizes(target, shape, 16, normed=True) is None  # it is the other kernel's
        assert linear_sizes(target, shape, 16, normed=True, gated=False) == LinearSizes(32, 256, 4, 3)
