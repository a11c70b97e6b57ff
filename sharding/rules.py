"""Logical axes to mesh axes: a sharding experiment is another mapping.

Parameters, KV pages and activations name their axes by what they mean ("heads", "mlp"); only here is
it said over which axis of the device mesh each is split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "tensor")


class ShardingError(ValueError):
    """A mesh or mapping that cannot be: two axes of one array on one mesh axis, an unknown name, a size."""


def _default_axes() -> dict[str, str | None]:
    return {
        "layers": None,
        "embed": None,
        "head_dim": None,
        "vocab": "tensor",
        "heads": "tensor",
        "kv_heads": "tensor",
        "mlp": "tensor",
        "pages": "data",
        "page": None,
        "rows": "data",
    }


@dataclass(frozen=True)
class ShardingRules:
    """Which mesh axis splits each logical axis; None keeps it whole."""

    axes: Mapping[str, str | None] = field(default_factory=_default_axes)

    def spec(self, logical: Sequence[str | None]) -> PartitionSpec:
        """The PartitionSpec of an array whose axes have these logical names (None: never split).

        Raises ShardingError for an unknown name and when two axes would share a mesh axis.
        """
        from jax.sharding import PartitionSpec

        mesh_axes: list[str | None] = []
        for name in logical:
            if name is not None and name not in self.axes:
                raise ShardingError(f"logical axis {name!r} has no rule; known are {', '.join(self.axes)}")
            axis = self.axes[name] if name is not None else None
            if axis is not None and axis in mesh_axes:
                raise ShardingError(f"axes {tuple(logical)} would split over mesh axis {axis!r} twice")
            mesh_axes.append(axis)
        return PartitionSpec(*mesh_axes)

    def sharding(self, mesh: Mesh, logical: Sequence[str | None]) -> NamedSharding:
        """`spec` on a mesh."""
        from jax.sharding import NamedSharding

        return NamedSharding(mesh, self.spec(logical))
