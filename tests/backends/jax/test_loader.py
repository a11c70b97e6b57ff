"""Weights on a mesh: what each device holds, and how much of a checkpoint is read for it."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from radixmesh.backends.jax.loader import load_params
from radixmesh.backends.jax.params import mesh_params
from radixmesh.backends.models.checkpoint import open_checkpoint
from radixmesh.backends.models.describe import read_spec
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.params import ParamSpec
from radixmesh.backends.models.source import ModelSource
from radixmesh.backends.models.weights import Weight, iterate_params
from radixmesh.sharding.mesh import MeshSpec, make_mesh
from radixmesh.sharding.rules import ShardingRules
from tests.tiny_models import save_tiny_model

LAYERS, VOCAB = 3, 13


def param(name: str, shape: tuple[int, ...], axes: tuple[str, ...], stacked: bool = True) -> ParamSpec:
    return ParamSpec(name, shape, axes, stacked, "", "", np.asarray, np.asarray)


PARAMS = (
    param("embed", (VOCAB, 6), ("vocab", "embed"), stacked=False),
    param("q", (6, 8, 4), ("embed", "heads", "head_dim")),
    param("q_bias", (8, 4), ("heads", "head_dim")),
    param("k", (6, 2, 4), ("embed", "kv_heads", "head_dim")),
    param("k_bias", (2, 4), ("kv_heads", "head_dim")),
    param("v", (6, 2, 4), ("embed", "kv_heads", "head_dim")),
    param("v_bias", (2, 4), ("kv_heads", "head_dim")),
    param("gate", (6, 16), ("embed", "mlp")),
    param("up", (6, 16), ("embed", "mlp")),
    param("down", (16, 6), ("mlp", "embed")),
    param("norm", (6,), ("embed",)),
)


class OnDisk:
    """Stands for a mapped tensor; notes how many values are read of it."""

    def __init__(self, array: np.ndarray, reads: list[int]) -> None:
        self.array, self.reads, self.shape = array, reads, array.shape

    def __getitem__(self, index: Any) -> "OnDisk":
        return OnDisk(self.array[index], self.reads)

    def take(self, indices: np.ndarray, axis: int) -> "OnDisk":
        return OnDisk(self.array.take(indices, axis), self.reads)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.reads.append(self.array.size)
        return self.array


def weights(reads: dict[str, list[int]]) -> Iterator[Weight]:
    rng = np.random.default_rng(0)
    for each in PARAMS:
        for layer in range(LAYERS) if each.stacked else (None,):
            array = rng.standard_normal(each.shape).astype(np.float32)
            yield each, layer, cast(np.ndarray, OnDisk(array, reads.setdefault(each.name, [])))


@pytest.mark.parametrize("mesh_spec", [MeshSpec(), MeshSpec(tensor=4), MeshSpec(data=2, tensor=4)], ids=str)
def test_each_device_gets_its_part_and_nothing_is_read_twice(mesh_spec: MeshSpec) -> None:
    reads: dict[str, list[int]] = {}
    mesh, rules = make_mesh(jax.devices(), mesh_spec), ShardingRules()
    got = load_params(weights(reads), mesh_params(PARAMS), LAYERS, jnp.dtype("bfloat16"), mesh, rules)
    stored: dict[str, Any] = {}
    for each, layer, array in weights({}):
        whole = np.asarray(array).astype(ml_dtypes.bfloat16)
        stored[each.name] = whole if layer is None else [*stored.get(each.name, []), whole]
    tp = mesh_spec.tensor
    want = {name: np.array(value) for name, value in stored.items()}
    for name in ("k", "k_bias", "v", "v_bias"):
        want[name] = want[name].repeat(max(tp // 2, 1), axis=-2)
    want["embed"] = np.pad(want["embed"], ((0, -VOCAB % tp), (0, 0)))
    sizes = {name: value.size for name, value in want.items()}
    for name, axis in (("qkv", -2), ("qkv_bias", -2), ("gate_up", -1)):
        want[name] = joined([want.pop(part) for part in PARTS[name]], axis, tp)
    assert got.keys() == want.keys()
    for name, made in got.items():
        assert made.dtype == jnp.bfloat16 and (np.asarray(made) == want[name]).all()
    assert got["gate_up"].addressable_shards[1 % tp].data.shape == (LAYERS, 6, 2 * 16 // tp)
    heads = 8 // tp + 2 * (2 // min(tp, 2))
    assert got["qkv"].addressable_shards[0].data.shape == (LAYERS, 6, heads * 4)
    assert {name: sum(each) for name, each in reads.items()} == {**sizes, "embed": VOCAB * 6}
    assert max(reads["gate"]) == 6 * 16 // tp


PARTS = {"qkv": "qkv", "qkv_bias": ("q_bias", "k_bias", "v_bias"), "gate_up": ("gate", "up")}


def joined(parts: list[np.ndarray], axis: int, tensor: int) -> np.ndarray:
    """What each shard holds of the parts, flat from `axis` on, shard beside shard."""
    shards = []
    for number in range(tensor):
        for part in parts:
            own = np.split(part, tensor, axis)[number]
            shards.append(own.reshape(*own.shape[:axis], -1))
    return np.concatenate(shards, -1)


def test_a_host_holds_one_parameter_at_a_time(tmp_path: Path) -> None:
    """Mapped tensors take no memory of their own, and a parameter that has gone to its devices takes none."""
    save_tiny_model("llama", tmp_path, hidden_size=128, intermediate_size=512, num_hidden_layers=6)
    source = ModelSource(str(tmp_path), "hf", "tiny")
    spec = read_spec(source)
    params = param_table(spec)
    mesh, rules = make_mesh(jax.devices(), MeshSpec(tensor=4)), ShardingRules()
    checkpoint = open_checkpoint(source)
    tracemalloc.start()
    weights = iterate_params(spec, params, checkpoint)
    arrays = load_params(weights, mesh_params(params), 6, jnp.dtype("bfloat16"), mesh, rules)
    # a simulated device may take over the host's buffer instead of copying it: no longer the host's
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = arrays["gate_up"].nbytes
    assert largest == 6 * 128 * 2 * 512 * 2 and peak - kept < 1.25 * largest
