"""Sizes of Triton kernels that were measured, one JSON file an architecture: `tuned/<architecture>.json`.

A file maps a kernel's name to entries, each with the properties of a case (`head_dim`, ...) and the
sizes that were fastest for it. What no entry describes takes the rule that stands beside the kernel.
Nothing is tried out at run time.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

# Bytes of shared memory that one core offers to all programs on it, as the vendors' manuals say.
_SHARED_KIB = {"sm_80": 164, "sm_86": 100, "sm_89": 100, "sm_90": 228, "sm_100": 228, "sm_120": 100}
_SHARED_KIB |= {"gfx90a": 64, "gfx942": 64, "gfx950": 160}


# Of every launch. A product and a sum are rounded once; Triton 3.10 will by default round twice.
OPTIONS = {"enable_fp_fusion": True}


class Target(NamedTuple):
    """What a launch needs to know of the device."""

    architecture: str  # "sm_90", "gfx942"; "cpu" is Triton's interpreter
    cores: int  # streaming multiprocessors or compute units

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a core; an unknown architecture gets what nearly all have."""
        return _SHARED_KIB.get(self.architecture, 64) << 10

    @property
    def converts_float8(self) -> bool:
        """Whether Triton turns float8_e4m3fn into wider numbers there."""
        return self.architecture not in ("sm_70", "sm_75", "sm_80", "sm_86", "sm_87", "gfx908", "gfx90a")

    @property
    def overlaps(self) -> bool:
        """Whether a kernel can start before the one that it follows has ended."""
        return self.architecture.startswith("sm_") and int(self.architecture[3:]) >= 90

    @property
    def is_amd(self) -> bool:
        return self.architecture.startswith("gfx")


@cache
def target_of(device: torch.device) -> Target:
    """The target of tensors on `device`."""
    if device.type == "cpu":
        return Target("cpu", 3)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Target(properties.gcnArchName.split(":")[0], properties.multi_processor_count)
    return Target(f"sm_{properties.major}{properties.minor}", properties.multi_processor_count)


@cache
def _table(architecture: str) -> dict[str, list[dict[str, int]]]:
    path = Path(__file__).parent / "tuned" / f"{architecture}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def measured(target: Target, kernel: str, **case: int) -> dict[str, int]:
    """The sizes that were measured for exactly this case; empty if none were."""
    for entry in _table(target.architecture).get(kernel, []):
        if all(entry[name] == value for name, value in case.items()):
            return {name: value for name, value in entry.items() if name not in case}
    return {}
