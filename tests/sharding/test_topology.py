"""Topologies by name: what they hold, which are refused, and the devices behind them."""

import subprocess
import sys
from pathlib import Path

import pytest

from radixmesh.sharding.topology import Topology, TopologyError, topology_names, tpu_chips

SRC = str(Path(__file__).parents[2] / "src")


@pytest.mark.parametrize(
    ("name", "devices", "shape", "chip"),
    [
        ("v6e:2x4", 8, (2, 4), "TPU v6e"),
        ("v5e:1x1", 1, (1, 1), "TPU v5e"),
        ("v5p:2x2x1", 4, (2, 2, 1), "TPU v5p"),
        ("tpu7x:2x2x1", 8, (2, 2, 1), "TPU7x"),  # two devices in a chip
        ("v4:2x2x2", 16, (2, 2, 2), "TPU v4"),
    ],
)
def test_slices_by_name(name: str, devices: int, shape: tuple[int, ...], chip: str) -> None:
    topology = Topology.parse(name)
    assert (topology.num_devices, topology.shape) == (devices, shape)
    assert topology.chip is not None and topology.chip.name == chip


def test_chips_per_device() -> None:
    chips = tpu_chips()
    assert chips["tpu7x"].bandwidth == 3690e9 and chips["tpu7x"].flops == 1153.5e12
    assert chips["v6e"].hbm_bytes == int(31.24 * 2**30)
    assert "v3" not in chips  # known by its PCI id; no slice of it is rented any more


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v6e:3x3", r"topology is 'v6e:3x3'; the slices of TPU v6e are v6e:1x1, v6e:2x2, v6e:2x4, "),
        ("v6e", "topology is 'v6e'; the slices of TPU v6e are "),
        ("v7x:2x2x1", "accepted are .*tpu7x:2x2x1.*, cpu:N and local"),
        ("v5p:2x4", "the slices of TPU v5p are v5p:1x1x1"),
        ("cpu:0", "accepted are "),
        ("", "accepted are "),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(name: str, told: str) -> None:
    with pytest.raises(TopologyError, match=told):
        Topology.parse(name)


def run(code: str) -> str:
    """What `code` prints in a fresh interpreter: jax must not have started."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path.insert(0, {SRC!r})\n{code}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "libtpu" not in done.stderr  # it complains of nothing
    return done.stdout.strip()


def test_devices_that_are_not_here() -> None:
    """The names in our table are libtpu's, and its count of devices is ours."""
    code = (
        "from radixmesh.sharding.topology import Topology, topology_names\n"
        "import jax\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        "for name in topology_names():\n"
        "    topology = Topology.parse(name)\n"
        "    devices = topology.devices()\n"
        "    assert {each.platform for each in devices} == {'tpu'}\n"
        "    if len(devices) != topology.num_devices: print(name, len(devices))\n"
        "print(len(topology_names()))"
    )
    assert run(code) == str(len(topology_names()))


def test_simulated_devices() -> None:
    code = (
        "from radixmesh.sharding.topology import Topology, TopologyError\n"
        "print(len(Topology.parse('cpu:6').devices()))\n"
        "try: Topology.parse('cpu:8').devices()\n"
        "except TopologyError as error: print(error)"
    )
    told = "topology is 'cpu:8', but jax has started with 6 CPU devices in this process"
    assert run(code).splitlines() == ["6", told]


def test_without_libtpu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radixmesh.sharding.topology.find_spec", lambda name: None)
    with pytest.raises(TopologyError, match=r"pip install 'radixmesh\[tpu-compile\]'"):
        Topology.parse("v6e:1x1").devices()
