"""The JAX decoder over paged KV, in chunks and beside another row, against transformers' logits."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from radixmesh.backends.jax.decoder import Decoder
from radixmesh.backends.jax.loader import load_params
from radixmesh.backends.models.checkpoint import open_checkpoint
from radixmesh.backends.models.describe import read_spec
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.source import ModelSource
from radixmesh.backends.models.spec import ModelSpec
from radixmesh.backends.models.weights import iterate_params
from radixmesh.kernels.paged_attention.rows import RaggedRows
from radixmesh.kernels.paged_attention.xla import ragged_paged_attention
from radixmesh.sharding.mesh import MeshSpec, make_mesh
from radixmesh.sharding.rules import ShardingRules
from tests.oracle import oracle_logits
from tests.tiny_models import CONFIGS, save_tiny_model

PAGE = 4  # tokens
TOKENS = 20  # of a step, padding included
SEQUENCES = [np.random.default_rng(length).integers(3, 160, length, dtype=np.int32) for length in (40, 23)]
# each step's (sequence, tokens), decode rows first
STEPS = [[(0, 17)], [(0, 1), (1, 9)], [(1, 1), (0, 14)], [(0, 1), (1, 1)], [(0, 7), (1, 12)]]
SPARE = sum(-(-len(each) // PAGE) for each in SEQUENCES)  # the page that padding writes to
PAGES = np.random.default_rng(2).permutation(SPARE).astype(np.int32)
TABLES = [PAGES[:10], PAGES[10:]]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    oracle = save_tiny_model(name, tmp_path)
    spec, decoder = load_decoder(tmp_path)

    @jax.jit
    def run(
        tokens: jax.Array, positions: jax.Array, rows: RaggedRows, kv_pages: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        hidden, kv_pages = decoder(tokens, positions, rows, kv_pages, ragged_paged_attention)
        return decoder.logits(hidden), kv_pages

    kv_pages = jnp.zeros((spec.num_layers * (SPARE + 1), spec.num_kv_heads, PAGE, 2 * spec.head_dim))
    got: list[list[NDArray[np.float32]]] = [[], []]
    done = [0, 0]
    for step in STEPS:
        tokens, positions, rows = plan(step, done)
        logits, kv_pages = run(tokens, positions, rows, kv_pages)
        start = 0
        for sequence, count in step:
            got[sequence].append(np.asarray(logits[start : start + count]))
            start += count
            done[sequence] += count
    for token_ids, parts in zip(SEQUENCES, got, strict=True):
        want = oracle_logits(oracle, token_ids.tolist())
        np.testing.assert_allclose(np.concatenate(parts), want, rtol=2e-4, atol=2e-4)


def load_decoder(folder: Path) -> tuple[ModelSpec, Decoder]:
    source = ModelSource(str(folder), "hf", "tiny")
    spec = read_spec(source)
    params = param_table(spec)
    weights = iterate_params(spec, params, open_checkpoint(source))
    mesh = make_mesh(jax.devices("cpu"), MeshSpec())
    arrays = load_params(weights, params, spec.num_layers, jnp.dtype("float32"), mesh, ShardingRules())
    return spec, Decoder(spec, params, arrays)


def plan(
    step: list[tuple[int, int]], done: list[int]
) -> tuple[NDArray[np.int32], NDArray[np.int32], RaggedRows]:
    """Tokens and positions [TOKENS], padded, and rows of one step after `done` tokens of each sequence."""
    ends = [done[sequence] + count for sequence, count in step]
    at = [np.arange(end - count, end) for end, (_, count) in zip(ends, step, strict=True)]
    slots = [TABLES[s][p // PAGE] * PAGE + p % PAGE for (s, _), p in zip(step, at, strict=True)]
    tables = [TABLES[s][: -(-end // PAGE)] for (s, _), end in zip(step, ends, strict=True)]
    pages = np.concatenate(tables)
    rows = RaggedRows(
        kv_slots=padded(slots, TOKENS, SPARE * PAGE),
        cu_q_lens=cumulative([count for _, count in step]),
        kv_lens=padded([ends], 3, 0),
        page_indices=padded([pages], len(PAGES), SPARE),
        page_offsets=cumulative([len(table) for table in tables]),
        num_rows=np.int32(len(step)),
        num_decode_rows=np.int32(sum(count == 1 for _, count in step)),
    )
    tokens = [SEQUENCES[s][p] for (s, _), p in zip(step, at, strict=True)]
    return padded(tokens, TOKENS, 0), padded(at, TOKENS, 0), rows


def padded(parts: Sequence[ArrayLike], size: int, filler: int) -> NDArray[np.int32]:
    joined = np.concatenate([np.asarray(part, np.int32) for part in parts])
    return np.pad(joined, (0, size - len(joined)), constant_values=filler)


def cumulative(counts: list[int]) -> NDArray[np.int32]:
    """Offsets of up to three rows; the rows of padding are empty."""
    return np.pad(np.cumsum([0, *counts]), (0, 3 - len(counts)), mode="edge").astype(np.int32)
