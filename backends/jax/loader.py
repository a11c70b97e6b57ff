"""Weights to devices: each tensor straight to its shards, one stacked parameter at a time on the host.

A host builds only what its own devices hold, and of a mapped file it reads only that.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ...sharding.rules import ShardingRules
from ..models.params import ParamSpec
from ..models.weights import Weight
from .formats import param_format
from .partition import mesh_shape

Bounds = tuple[tuple[int, int], ...]  # start and stop along each axis


def load_params(
    weights: Iterator[Weight], params: Iterable[ParamSpec], num_layers: int, dtype: jnp.dtype,
    mesh: Mesh, rules: ShardingRules,
) -> dict[str, jax.Array]:  # fmt: skip
    """Put every parameter on the mesh in `dtype`; stacked ones as [layers, ...]. Shows progress on stderr.

    Shapes are those of `mesh_shape`: KV heads are repeated where there are fewer than tensor shards, and the
    vocabulary is padded with zeros to a multiple of them.
    """
    arrays: dict[str, jax.Array] = {}
    steps = sum(num_layers if param.stacked else 1 for param in params)
    with tqdm(
        total=steps, desc="loading weights", unit="tensor", leave=False, dynamic_ncols=True
    ) as progress:
        for param, group in groupby(weights, key=lambda weight: weight[0]):
            made = abstract_param(param, num_layers, dtype, mesh, rules)
            arrays[param.name] = _load(param, made, group, progress)
    return arrays


def _load(param: ParamSpec, made: jax.ShapeDtypeStruct, group: Iterator[Weight], progress: tqdm) -> jax.Array:
    """One parameter. The host's copy is gone when this returns."""
    shards = _Shards(param, made)
    for _, layer, stored in group:
        shards.put(layer, stored)
        progress.update()
    return jax.block_until_ready(shards.on_devices())


def abstract_param(
    param: ParamSpec, num_layers: int, dtype: jnp.dtype, mesh: Mesh, rules: ShardingRules
) -> jax.ShapeDtypeStruct:
    """A parameter as `load_params` makes it, before there is any weight; the mesh may be of devices that
    are not here."""
    shape, axes = mesh_shape(param, mesh.shape["tensor"]), param.axes
    if param.stacked:
        shape, axes = (num_layers, *shape), ("layers", *axes)
    placed = param_format(param, rules.sharding(mesh, axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)


class _Shards:
    """One parameter on its way: a host array for each distinct shard that devices of this host hold."""

    def __init__(self, param: ParamSpec, made: jax.ShapeDtypeStruct) -> None:
        self._param, self._made = param, made
        wanted = made.sharding.addressable_devices_indices_map(made.shape).values()
        self._shards = {
            bounds: np.zeros([stop - start for start, stop in bounds], made.dtype)
            for bounds in {self._bounds(index) for index in wanted}
        }

    def put(self, layer: int | None, stored: np.ndarray) -> None:
        """Copy to each shard what it holds of one layer's tensor."""
        for bounds, shard in self._shards.items():
            if layer is not None:
                shard, bounds = shard[layer], bounds[1:]  # no mesh axis splits layers
            part = self._part(stored, bounds)
            shard[tuple(slice(size) for size in part.shape)] = part  # padding stays zero

    def on_devices(self) -> jax.Array:
        """The array of all shards. Nothing may be put after."""
        return jax.make_array_from_callback(
            self._made.shape, self._made.format, lambda index: self._shards[self._bounds(index or ())]
        )

    def _bounds(self, index: Sequence[slice]) -> Bounds:
        return tuple(part.indices(size)[:2] for part, size in zip(index, self._made.shape, strict=True))

    def _part(self, stored: np.ndarray, bounds: Bounds) -> np.ndarray:
        """What lies between `bounds` of the tensor on the mesh, from the tensor as it is stored."""
        sizes = self._made.shape[-len(bounds) :]
        axes = zip(self._param.axes, sizes, bounds, strict=True)
        for axis, (name, size, (start, stop)) in enumerate(axes):
            if name == "kv_heads" and size > stored.shape[axis]:
                stored = stored.take(np.arange(start, stop) // (size // stored.shape[axis]), axis)
            else:
                stored = stored[(slice(None),) * axis + (slice(start, stop),)]
        return stored
