"""The JAX decoder over paged KV, in chunks and beside another row, against transformers' logits."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from radixmesh.backends.jax.decoder import Decoder
from radixmesh.backends.jax.loader import load_params
from radixmesh.backends.jax.params import mesh_params
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
from tests.decoder_steps import PAGE, SEQUENCES, SPARE, STEPS, plan
from tests.oracle import oracle_logits
from tests.tiny_models import CONFIGS, save_tiny_model


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
    table = param_table(spec)
    weights = iterate_params(spec, table, open_checkpoint(source))
    mesh = make_mesh(jax.devices("cpu"), MeshSpec())
    params = mesh_params(table)
    arrays = load_params(weights, params, spec.num_layers, jnp.dtype("float32"), mesh, ShardingRules())
    return spec, Decoder(spec, params, arrays)
