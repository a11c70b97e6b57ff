"""Meshes of devices: `MeshSpec` says how large each axis is, `make_mesh` lays devices out in it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jax
    from jax.sharding import Mesh

from .rules import MESH_AXES, ShardingError


@dataclass(frozen=True)
class MeshSpec:
    """Axis sizes by name, outermost first: `data` groups serve different requests, the devices of one
    group share each layer over `tensor`. Raises ShardingError for a size below 1."""

    data: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            if size < 1:
                raise ShardingError(f"mesh axis {name} is {size}; accepted is an integer of at least 1")

    @property
    def sizes(self) -> dict[str, int]:
        """Each axis with its size, in the order of the mesh."""
        return dataclasses.asdict(self)

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes.values())

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.sizes.items())

    @staticmethod
    def parse(text: str) -> MeshSpec:
        """From "data=2,tensor=4"; an axis that is not named has size 1. Raises ShardingError."""
        sizes = {}
        for part in text.split(","):
            name, _, size = (each.strip() for each in part.partition("="))
            if name not in MESH_AXES or not size.isdigit() or name in sizes:
                raise ShardingError(
                    f"mesh is {text!r}; accepted are {', '.join(MESH_AXES)}, each once, as in data=2,tensor=4"
                )
            sizes[name] = int(size)
        return MeshSpec(**sizes)


ONE_DEVICE = MeshSpec()


def make_mesh(devices: Sequence[jax.Device], spec: MeshSpec = ONE_DEVICE) -> Mesh:
    """The first of `devices` laid out as `spec` says; neighbours in the list share a tensor axis.

    Raises ShardingError when there are fewer devices than that.
    """
    import numpy as np
    from jax.sharding import Mesh

    if len(devices) < spec.num_devices:
        raise ShardingError(f"a mesh of {spec} takes {spec.num_devices} devices; {len(devices)} are here")
    shape = tuple(spec.sizes.values())
    return Mesh(np.asarray(devices[: spec.num_devices], dtype=object).reshape(shape), MESH_AXES)


def simulate_cpu_devices(count: int) -> None:
    """Have jax show at least `count` CPU devices. It must not have started yet, unless it shows them already.

    Raises ShardingError when it is too late.
    """
    import jax

    try:
        asked = max(count, jax.config.jax_num_cpu_devices)  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", asked)
    except RuntimeError:
        here = len(jax.devices("cpu"))
        if here < count:
            raise ShardingError(
                f"{count} CPU devices are needed; jax has started with {here}, and it is too late for more"
            ) from None
