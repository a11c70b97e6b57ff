"""Weights to devices: each tensor straight to its shards, one stacked parameter at a time on the host."""

from collections.abc import Iterable, Iterator
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ...sharding.rules import ShardingRules
from ..models.params import ParamSpec
from ..models.weights import Weight


def load_params(
    weights: Iterator[Weight], params: Iterable[ParamSpec], num_layers: int, dtype: jnp.dtype,
    mesh: Mesh, rules: ShardingRules,
) -> dict[str, jax.Array]:  # fmt: skip
    """Put every parameter on the mesh in `dtype`; stacked ones as [layers, ...]. Shows progress on stderr."""
    arrays: dict[str, jax.Array] = {}
    steps = sum(num_layers if param.stacked else 1 for param in params)
    with tqdm(
        total=steps, desc="loading weights", unit="tensor", leave=False, dynamic_ncols=True
    ) as progress:
        for name, group in groupby(weights, key=lambda weight: weight[0].name):
            host, axes = _assemble(group, num_layers, dtype, progress)
            arrays[name] = jax.device_put(host, rules.sharding(mesh, axes))
    return arrays


def _assemble(
    group: Iterator[Weight], num_layers: int, dtype: jnp.dtype, progress: tqdm
) -> tuple[np.ndarray, tuple[str | None, ...]]:
    """One parameter's host array and its logical axes, layers stacked in front."""
    host: np.ndarray | None = None
    axes: tuple[str | None, ...] = ()
    for param, layer, array in group:
        progress.update()
        if layer is None:
            return np.ascontiguousarray(array, dtype), param.axes
        if host is None:
            host, axes = np.empty((num_layers, *param.shape), dtype), ("layers", *param.axes)
        host[layer] = array
    assert host is not None
    return host, axes
