"""The mesh that a config asks for, of devices that are here."""

import jax
from jax.sharding import Mesh

from ...engine.config import EngineConfig
from ...engine.errors import ConfigError
from ...sharding.mesh import MeshSpec, make_mesh, simulate_cpu_devices
from ...sharding.rules import ShardingError
from ..resolve import Device


def mesh_for(config: EngineConfig, platform: Device) -> Mesh:
    """dp_size x tp_size devices of `platform`. CPU devices are simulated, as many as it takes.

    Raises ConfigError when there are fewer.
    """
    spec = MeshSpec(data=config.dp_size, tensor=config.tp_size)
    asked = f"dp_size is {config.dp_size} and tp_size is {config.tp_size}"
    try:
        if platform == "cpu" and spec.num_devices > 1:
            simulate_cpu_devices(spec.num_devices // config.nnodes)
        devices = jax.devices(platform)
        mesh = make_mesh(devices, spec)
    except ShardingError as error:
        raise ConfigError(f"{asked}: {error}") from None
    if (owners := {device.process_index for device in mesh.devices.flat}) != set(range(config.nnodes)):
        raise ConfigError(
            f"{asked}, which takes devices of {len(owners)} of {config.nnodes} processes; accepted is all"
            f" {len(devices)} devices"
        )
    return mesh
