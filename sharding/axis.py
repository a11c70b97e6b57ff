"""One axis of the mesh as code inside `jax.shard_map` sees it: every collective of a step is one of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class MeshAxis:
    """Collectives over a mesh axis. Over an axis of size 1 they are the identity, need no mesh and leave
    nothing behind: XLA on a CPU would keep an all-reduce among one."""

    name: str
    size: int

    def index(self) -> jax.Array | int:
        """Which shard this is."""
        from jax import lax

        return lax.axis_index(self.name) if self.size > 1 else 0

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum over all shards, on every shard."""
        from jax import lax

        return lax.psum(x, self.name) if self.size > 1 else x

    def max(self, x: jax.Array) -> jax.Array:
        """The largest over all shards, element by element, on every shard."""
        from jax import lax

        return lax.pmax(x, self.name) if self.size > 1 else x

    def gather(self, x: jax.Array) -> jax.Array:
        """Every shard's x, stacked in front: [size, ...]."""
        from jax import lax

        return lax.all_gather(x, self.name) if self.size > 1 else x[None]


ALONE = MeshAxis("tensor", 1)
