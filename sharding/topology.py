"""Where a program runs: the devices of this machine, simulated CPU devices, or a TPU slice that need
not be here.

A slice is named as libtpu names it, "v6e:2x4": its chip, and how many chips lie along each axis of the
interconnect. What is known of the chips is in `tpu_chips.json`; only `devices` imports jax.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

GIB = 1 << 30
# What libtpu reads when it loads. Without these it looks for a TPU's metadata server, refuses a second
# process, and complains that it knows neither its host nor its chips: a compiler needs none of that.
_COMPILE_ONLY = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5e-1",
}


class TopologyError(ValueError):
    """A topology that does not exist, or whose devices cannot be had here."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation of TPU, by what a single jax device of it has.

    A chip of some generations is two devices, each with its own half of the memory. Rates are peaks.
    """

    generation: str  # "v6e", as topologies are named
    name: str  # "TPU v6e"
    jax_kind: str  # "TPU v6 lite", the `device_kind` of its jax devices
    hbm_bytes: int  # what a program may use; the chip's own is a little more
    bandwidth: float  # bytes of HBM per second
    flops: float  # bfloat16, per second
    ici_bandwidth: float  # bytes per second over all interconnect links, both directions together
    vmem_bytes: int
    devices: int  # jax devices in a chip
    slices: tuple[str, ...]  # the shapes that are rented, smallest first


@dataclass(frozen=True)
class Topology:
    """A set of devices by name: "v6e:2x4", "cpu:8" (simulated), or "local" (what jax finds here).

    `num_devices` counts jax devices and is None for "local", where only `devices` can tell.
    """

    name: str
    num_devices: int | None
    chip: Chip | None = None  # of a TPU slice
    shape: tuple[int, ...] = ()  # chips along each axis of the interconnect

    @staticmethod
    def parse(name: str) -> Topology:
        """The topology of that name. Raises TopologyError saying which there are."""
        if name == "local":
            return Topology(name, None)
        if match := re.fullmatch(r"cpu:([1-9]\d*)", name):
            return Topology(name, int(match[1]))
        generation, _, size = name.partition(":")
        if generation not in tpu_chips():
            raise TopologyError(
                f"topology is {name!r}; accepted are {', '.join(topology_names())}, cpu:N and local"
            )
        chip = tpu_chips()[generation]
        if size not in chip.slices:
            known = ", ".join(f"{generation}:{each}" for each in chip.slices)
            raise TopologyError(f"topology is {name!r}; the slices of {chip.name} are {known}")
        shape = tuple(int(each) for each in size.split("x"))
        return Topology(name, math.prod(shape) * chip.devices, chip, shape)

    def devices(self) -> Sequence[jax.Device]:
        """The jax devices. Those of a TPU slice can be compiled for, not computed on.

        Raises TopologyError when libtpu is not installed, or jax was started with fewer CPU devices.
        """
        import jax

        if self.chip is not None:
            return _slice_devices(self.name)
        if self.num_devices is None:
            return jax.devices()
        jax.config.update("jax_platforms", "cpu")
        try:
            jax.config.update("jax_num_cpu_devices", self.num_devices)
        except RuntimeError:  # jax has started already
            pass
        here = jax.devices("cpu")
        if len(here) < self.num_devices:
            raise TopologyError(
                f"topology is {self.name!r}, but jax has started with {len(here)} CPU devices in this process"
            )
        return here[: self.num_devices]


def topology_names() -> list[str]:
    """Every TPU slice there is, as a name for `Topology.parse`."""
    return [f"{chip.generation}:{size}" for chip in tpu_chips().values() for size in chip.slices]


@cache
def chip_facts() -> Mapping[str, Mapping[str, Any]]:
    """`tpu_chips.json` as it is: generation -> facts of a whole chip."""
    facts: Mapping[str, Mapping[str, Any]] = json.loads(
        Path(__file__).with_name("tpu_chips.json").read_text(encoding="utf-8")
    )
    return facts


@cache
def tpu_chips() -> Mapping[str, Chip]:
    """The generations that slices are rented of, by name."""
    return {
        generation: Chip(
            generation=generation,
            name=facts["name"],
            jax_kind=facts["jax_kind"],
            hbm_bytes=int(facts["usable_gib"] * GIB),
            bandwidth=facts["bandwidth_gb_s"] * 1e9 / facts["devices"],
            flops=facts["bf16_tflops"] * 1e12 / facts["devices"],
            ici_bandwidth=facts["ici_gb_s"] * 1e9 / facts["devices"],
            vmem_bytes=facts["vmem_mib"] << 20,
            devices=facts["devices"],
            slices=tuple(facts["slices"]),
        )
        for generation, facts in chip_facts().items()
        if facts["slices"]
    }


def chip_of(device: jax.Device) -> Chip | None:
    """The generation of a TPU device, here or not; None for other devices and for unknown TPUs."""
    found = (chip for chip in tpu_chips().values() if chip.jax_kind == device.device_kind)
    return next(found, None)


def _slice_devices(name: str) -> Sequence[jax.Device]:
    """Devices of a TPU slice that only the compiler knows.

    The TPU that may be here is left alone: what jax computes in this process, it computes on the CPU.
    """
    if find_spec("libtpu") is None:
        raise TopologyError(
            f"topology is {name!r}, which needs the TPU compiler: pip install 'radixmesh[tpu-compile]'"
        )
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    for variable, value in _COMPILE_ONLY.items():
        os.environ.setdefault(variable, value)
    devices: Sequence[jax.Device] = topologies.get_topology_desc(name, platform="tpu").devices
    return devices
