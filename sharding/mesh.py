"""The device mesh: today one device under the names that larger meshes will have."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jax
    from jax.sharding import Mesh

from .rules import MESH_AXES


def make_mesh(devices: Sequence[jax.Device], data: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of `data` x `tensor` devices with the axes "data" and "tensor".

    Raises ValueError when there are fewer devices than that.
    """
    import numpy as np
    from jax.sharding import Mesh

    need = data * tensor
    if len(devices) < need:
        raise ValueError(
            f"a mesh of data={data} x tensor={tensor} needs {need} devices; {len(devices)} are here"
        )
    return Mesh(np.asarray(devices[:need], dtype=object).reshape(data, tensor), MESH_AXES)
