"""The decoder's parameters as they lie on a mesh: q, k and v are one matrix, gate and up another.

One product then computes what five would. The columns of such a matrix are ordered by tensor shard: each
shard's part is its own queries, keys and values (or gates and ups), side by side.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..models.params import ParamSpec

_JOINED = {
    "qkv": ("q", "k", "v"), "qkv_bias": ("q_bias", "k_bias", "v_bias"),
    "gate_up": ("gate", "up"), "gate_up_bias": ("gate_bias", "up_bias"),
}  # fmt: skip


@dataclass(frozen=True)
class MeshParam:
    """One array of the decoder, of one parameter of the table or of several that are joined.

    Axes are those of a single layer when `stacked`. Joined ones have the axes before the split one, and
    all others as columns, which bear the name of the first part's split axis.
    """

    name: str
    parts: tuple[ParamSpec, ...]
    axes: tuple[str | None, ...]

    @property
    def stacked(self) -> bool:
        return self.parts[0].stacked

    @property
    def joined(self) -> bool:
        return len(self.parts) > 1

    def shape(self, tensor: int) -> tuple[int, ...]:
        """[..., ] on `tensor` shards, all of them together."""
        shapes = [mesh_shape(part, tensor) for part in self.parts]
        if not self.joined:
            return shapes[0]
        columns = len(self.axes) - 1
        return (*shapes[0][:columns], sum(math.prod(shape[columns:]) for shape in shapes))


def mesh_params(params: Iterable[ParamSpec]) -> tuple[MeshParam, ...]:
    """The arrays that hold the parameters of a table."""
    table = {param.name: param for param in params}
    whole = {part: name for name, parts in _JOINED.items() for part in parts if set(parts) <= table.keys()}
    made: dict[str, MeshParam] = {}
    for name, param in table.items():
        if name not in whole:
            made[name] = MeshParam(name, (param,), param.axes)
        elif whole[name] not in made:
            parts = tuple(table[part] for part in _JOINED[whole[name]])
            made[whole[name]] = MeshParam(whole[name], parts, param.axes[: 2 if "embed" in param.axes else 1])
    return tuple(made.values())


def mesh_shape(param: ParamSpec, tensor: int) -> tuple[int, ...]:
    """Shape of one layer's parameter on a mesh: its KV heads repeated, its vocabulary padded."""
    sizes = []
    for axis, size in zip(param.axes, param.shape, strict=True):
        if axis == "kv_heads":
            size = max(size, tensor)
        if axis == "vocab":
            size = -(-size // tensor) * tensor
        sizes.append(size)
    return tuple(sizes)
