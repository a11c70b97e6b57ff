"""Weights to devices: each tensor straight to its shards, one array of the decoder at a time on the host.

A host builds only what its own devices hold, and of a mapped file it reads only that.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ...sharding.rules import ShardingRules
from ..models.params import ParamSpec
from ..models.weights import Weight
from .params import MeshParam, mesh_shape

Bounds = tuple[tuple[int, int], ...]  # start and stop along each axis


def load_params(
    weights: Iterator[Weight], params: Sequence[MeshParam], num_layers: int, dtype: jnp.dtype,
    mesh: Mesh, rules: ShardingRules,
) -> dict[str, jax.Array]:  # fmt: skip
    """Put every parameter on the mesh in `dtype`; stacked ones as [layers, ...]. Shows progress on stderr.

    Shapes are those of `MeshParam.shape`: KV heads are repeated where there are fewer than tensor shards, and
    the vocabulary is padded with zeros to a multiple of them.
    """
    arrays: dict[str, jax.Array] = {}
    owners = {part.name: param for param in params for part in param.parts}
    begun: dict[str, _Shards] = {}
    steps = sum(num_layers if part.stacked else 1 for param in params for part in param.parts)
    with tqdm(
        total=steps, desc="loading weights", unit="tensor", leave=False, dynamic_ncols=True
    ) as progress:
        for part, group in groupby(weights, key=lambda weight: weight[0]):
            param = owners[part.name]
            if param.name not in begun:
                made = abstract_param(param, num_layers, dtype, mesh, rules)
                begun[param.name] = _Shards(param, made, mesh.shape["tensor"])
            for _, layer, stored in group:
                begun[param.name].put(part, layer, stored)
                progress.update()
            if part.name == param.parts[-1].name:  # the host's copy is gone after this
                arrays[param.name] = jax.block_until_ready(begun.pop(param.name).on_devices())
    return arrays


def abstract_param(
    param: MeshParam, num_layers: int, dtype: jnp.dtype, mesh: Mesh, rules: ShardingRules
) -> jax.ShapeDtypeStruct:
    """A parameter as `load_params` makes it, before there is any weight; the mesh may be of devices that
    are not here."""
    shape, axes = param.shape(mesh.shape["tensor"]), param.axes
    if param.stacked:
        shape, axes = (num_layers, *shape), ("layers", *axes)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rules.sharding(mesh, axes))


class _Shards:
    """One array on its way: a host array for each distinct shard that devices of this host hold."""

    def __init__(self, param: MeshParam, made: jax.ShapeDtypeStruct, tensor: int) -> None:
        self._param, self._made, self._tensor = param, made, tensor
        wanted = made.sharding.addressable_devices_indices_map(made.shape).values()
        self._shards = {
            bounds: np.zeros([stop - start for start, stop in bounds], made.dtype)
            for bounds in {self._bounds(index) for index in wanted}
        }

    def put(self, part: ParamSpec, layer: int | None, stored: np.ndarray) -> None:
        """Copy to each shard what it holds of one layer's tensor."""
        sizes = mesh_shape(part, self._tensor)
        for bounds, shard in self._shards.items():
            if layer is not None:
                shard, bounds = shard[layer], bounds[1:]  # no mesh axis splits layers
            if self._param.joined:
                shard, bounds = self._columns(part, bounds, shard)
            values = np.asarray(_cut(stored, part, sizes, bounds))
            if self._param.joined:
                values = values.reshape(*shard.shape)
            shard[tuple(slice(size) for size in values.shape)] = values  # padding stays zero

    def on_devices(self) -> jax.Array:
        """The array of all shards. Nothing may be put after."""
        return jax.make_array_from_callback(
            self._made.shape, self._made.sharding, lambda index: self._shards[self._bounds(index or ())]
        )

    def _bounds(self, index: Sequence[slice]) -> Bounds:
        return tuple(part.indices(size)[:2] for part, size in zip(index, self._made.shape, strict=True))

    def _columns(self, part: ParamSpec, bounds: Bounds, shard: np.ndarray) -> tuple[np.ndarray, Bounds]:
        """Where one part lies in a shard of several, and what lies there: its bounds in the whole part."""
        *leading, (start, stop) = bounds
        axis, count = len(leading), self._made.shape[-1] // (stop - start)
        number, first = start // (stop - start), 0
        for each in self._param.parts:
            sizes = mesh_shape(each, self._tensor)
            width = math.prod(sizes[axis:]) // count
            if each.name == part.name:
                break
            first += width
        split = sizes[axis] // count
        own = (number * split, (number + 1) * split)
        return shard[..., first : first + width], (*leading, own, *((0, size) for size in sizes[axis + 1 :]))


def _cut(stored: np.ndarray, param: ParamSpec, sizes: tuple[int, ...], bounds: Bounds) -> np.ndarray:
    """What lies between `bounds` of a tensor of `sizes` on the mesh, from the tensor as it is stored."""
    for axis, (name, size, (start, stop)) in enumerate(zip(param.axes, sizes, bounds, strict=True)):
        if name == "kv_heads" and size > stored.shape[axis]:
            stored = stored.take(np.arange(start, stop) // (size // stored.shape[axis]), axis)
        else:
            stored = stored[(slice(None),) * axis + (slice(start, stop),)]
    return stored
