"""Mesh specs, meshes of simulated devices, and the report of what lies where."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from radixmesh.sharding.mesh import MeshSpec, make_mesh, simulate_cpu_devices
from radixmesh.sharding.report import device_bytes, format_placements, placements
from radixmesh.sharding.rules import MESH_AXES, ShardingError, ShardingRules

SRC = Path(__file__).parents[2] / "src"


def test_a_spec_reads_and_writes_itself() -> None:
    assert MeshSpec.parse("tensor=4, data=2") == MeshSpec(data=2, tensor=4)
    assert MeshSpec.parse("tensor=8") == MeshSpec(tensor=8)
    assert MeshSpec.parse(str(MeshSpec(3, 5))) == MeshSpec(3, 5)
    assert tuple(MeshSpec().sizes) == MESH_AXES and MeshSpec(3, 5).num_devices == 15


@pytest.mark.parametrize("text", ["", "tensor", "tensor=x", "tensor=-1", "data=1,data=2", "wing=4", "data=0"])
def test_a_spec_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ShardingError, match="accepted"):
        MeshSpec.parse(text)


def test_neighbours_share_a_tensor_axis() -> None:
    simulate_cpu_devices(8)
    mesh = make_mesh(jax.devices(), MeshSpec(data=2, tensor=3))
    assert dict(mesh.shape) == {"data": 2, "tensor": 3}
    assert [[device.id for device in row] for row in mesh.devices] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ShardingError, match="data=3,tensor=4 takes 12 devices; 8 are here"):
        make_mesh(jax.devices(), MeshSpec(3, 4))


def test_devices_cannot_be_simulated_too_late() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(SRC)!r})
from radixmesh.sharding.mesh import ShardingError, simulate_cpu_devices
import jax
simulate_cpu_devices(3)
simulate_cpu_devices(2)
assert len(jax.devices("cpu")) == 3
simulate_cpu_devices(3)
try:
    simulate_cpu_devices(4)
except ShardingError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (
        done.stdout.strip() == "4 CPU devices are needed; jax has started with 3, and it is too late for more"
    )


def test_the_report_says_what_one_device_holds() -> None:
    simulate_cpu_devices(8)
    mesh, rules = make_mesh(jax.devices(), MeshSpec(2, 4)), ShardingRules()
    pool = jnp.zeros((8, 4, 2), device=rules.sharding(mesh, ("pages", "kv_heads", "head_dim")))
    arrays = {
        "gate": jax.ShapeDtypeStruct(
            (3, 16, 64), jnp.bfloat16, sharding=rules.sharding(mesh, ("layers", "embed", "mlp"))
        ),
        "norm": jnp.zeros(16, device=rules.sharding(mesh, ("embed",))),
        "pool": pool,
    }
    placed = placements(arrays)
    assert [each.device_shape for each in placed] == [(3, 16, 16), (16,), (4, 1, 2)]
    assert [each.device_bytes for each in placed] == [1536, 64, 32]
    assert [each.split for each in placed] == [(None, None, "tensor"), (None,), ("data", "tensor", None)]
    assert device_bytes(arrays.values()) == 1632
    held = [sum(shard.data.nbytes for shard in pool.addressable_shards if shard.device == device)
            for device in mesh.devices.flat]  # fmt: skip
    assert held == [32] * 8
    lines = format_placements(placed).splitlines()
    assert len(lines) == 5 and lines[1].split() == [
        "gate", *"3 x 16 x 64".split(), "bfloat16", "-,", "-,", "tensor", *"3 x 16 x 16".split(), "0.00",
    ]  # fmt: skip


def test_axes_that_collide_are_refused() -> None:
    rules = ShardingRules()
    with pytest.raises(ShardingError, match="'tensor' twice"):
        rules.spec(("heads", "mlp"))
    with pytest.raises(ShardingError, match="'wings' has no rule"):
        rules.spec(("wings",))
