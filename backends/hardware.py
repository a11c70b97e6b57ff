"""The hardware abstraction layer: what this machine has, found without any framework or network.

Everything is read from `/proc`, `/sys` and `/dev` (and `nvidia-smi` where it is installed), so that
asking costs milliseconds and starts no driver. What to make of it is `resolve.py`'s business.
"""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..sharding.topology import chip_facts

KIB = 1024
MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What this machine has. Sizes in bytes; a field that could not be found out is None.

    `memory_bytes` and `free_bytes` are the host's, never more than its control group may use. The
    `device_` fields are those of a single accelerator. `driver` is the kernel driver's version, or libtpu's
    on a TPU; without one no framework can reach the accelerator. A `torch` whose version ends in "+cpu"
    can reach no GPU.
    """

    platform: Literal["cpu", "tpu", "cuda", "rocm"]
    kind: str  # "AMD EPYC", "TPU v5e", "NVIDIA H100 80GB HBM3"
    count: int  # accelerators; 1 for a CPU
    cores: int  # host cores that this process may use
    memory_bytes: int
    free_bytes: int
    device_memory_bytes: int | None = None
    device_bandwidth: int | None = None  # bytes per second
    driver: str | None = None
    torch: str | None = None  # version of the installed PyTorch
    reason: str  # how it was found


def detect(root: Path = Path("/"), env: Mapping[str, str] = os.environ) -> Hardware:
    """Look for a TPU, then an NVIDIA GPU, then an AMD GPU; without any, this is a CPU machine.

    `root` stands for the file system's root (tests give a made-up tree). Of `env` only what hides devices
    from the frameworks is read, and hides them here too: JAX_PLATFORMS, CUDA_VISIBLE_DEVICES and AMD's
    HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES.
    """
    memory, free = host_memory(root)
    host = Hardware(
        platform="cpu",
        kind=_cpu_kind(root),
        count=1,
        cores=_cores(root),
        memory_bytes=memory,
        free_bytes=free,
        torch=_installed("torch"),
        reason="no TPU on the PCI bus, no /dev/nvidia*, no AMD GPU in /sys/class/kfd",
    )
    if env.get("JAX_PLATFORMS", "").strip().lower() == "cpu":
        return replace(host, reason="JAX_PLATFORMS=cpu hides any accelerator")
    return _find_tpu(root, host) or _find_nvidia(root, host, env) or _find_amd(root, host, env) or host


class _Shown(NamedTuple):
    """Which of a machine's GPUs the vendor's own variables let a process use."""

    indices: list[int]
    reason: str  # what the variable did, empty if there is none


def _shown(count: int, env: Mapping[str, str], *names: str) -> _Shown:
    """The first of the variables `names` that is set decides. As the vendors read them, a list ends at the
    first entry that names no device. A UUID is taken for the first device: which one it is matters only where
    they differ."""
    name = next((each for each in names if each in env), None)
    if name is None:
        return _Shown(list(range(count)), "")
    indices: list[int] = []
    for entry in (each.strip() for each in env[name].split(",")):
        is_uuid = entry.startswith(("GPU-", "MIG-"))
        index = 0 if is_uuid else int(entry) if entry.isdigit() else count
        if index >= count:
            break
        indices.append(index)
    return _Shown(indices, f", {name}={env[name]} shows {len(indices)}")


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes that this process may use in all, and may still take now.

    Both honour the memory limit of the control group (containers, systemd units): what the machine
    has beyond it would only get the process killed.
    """
    meminfo = _read(root / "proc/meminfo")
    if meminfo:
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE))
        total, free = int(fields["MemTotal"]) * KIB, int(fields["MemAvailable"]) * KIB
    else:  # not Linux
        import psutil

        memory = psutil.virtual_memory()
        total, free = memory.total, memory.available
    for limit, used in _memory_limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _memory_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) bytes of our control group and each above it. Page cache that can go is not "used"."""
    limits = []
    for folder in _control_groups(root, "memory"):
        for limit_file, usage_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _read(folder / limit_file), _read(folder / usage_file)
            if limit.isdigit() and usage.isdigit():  # no limit is written "max"
                match = re.search(rf"^{cache} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                limits.append((int(limit), int(usage) - (int(match[1]) if match else 0)))
    return limits


def _control_groups(root: Path, controller: str) -> list[Path]:
    """Folders of our control group and of those above it, of version 1 and version 2.

    Inside a container the path in /proc/self/cgroup may be the host's: folders of it that are not
    mounted are skipped, and the mount's own root then holds the container's limits.
    """
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = Path(path.lstrip("/"))
        folders += [mount / each for each in (group, *group.parents)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _cores(root: Path) -> int:
    """Cores that this process may use: its affinity, and its control group's share of time, rounded up."""
    listed = len(re.findall(r"^processor\s*:", _read(root / "proc/cpuinfo"), re.MULTILINE))
    cores = listed or os.cpu_count() or 1
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    for folder in _control_groups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not period:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # no limit is written "max" or "-1"
            cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)


def _cpu_kind(root: Path) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def tpu_chips_here(root: Path = Path("/")) -> list[Mapping[str, Any]]:
    """The facts of each TPU chip that this process may use, as `sharding/tpu_chips.json` has them.

    TPU chips are PCI devices of Google; one without its node is not given to this container.
    """
    chips = {facts["pci"]: facts for facts in chip_facts().values()}
    found = []
    for vendor in sorted(root.glob("sys/bus/pci/devices/*/vendor")):
        if _read(vendor) == "0x1ae0":
            found += [chips[each] for each in [_read(vendor.parent / "device")] if each in chips]
    nodes = [
        *root.glob("dev/accel[0-9]*"),
        *root.glob("dev/accel/accel[0-9]*"),
        *root.glob("dev/vfio/[0-9]*"),
    ]
    return found[: len(nodes)]


def _find_tpu(root: Path, host: Hardware) -> Hardware | None:
    found = tpu_chips_here(root)
    if not found:
        return None
    chip, count = found[0], len(found)
    return replace(
        host,
        platform="tpu",
        kind=chip["name"],
        count=count,
        device_memory_bytes=chip["hbm_gib"] * GIB,
        device_bandwidth=chip["bandwidth_gb_s"] * 10**9,
        driver=_installed("libtpu"),
        reason=f"{count} chips on the PCI bus with device nodes",
    )


def _find_nvidia(root: Path, host: Hardware, env: Mapping[str, str]) -> Hardware | None:
    """Device nodes tell how many; `nvidia-smi`, else the driver's own folder in /proc, tells what."""
    nodes = list(root.glob("dev/nvidia[0-9]*"))
    if not nodes and not (root / "dev/dxg").exists():  # dxg: Windows' subsystem for Linux
        return None
    rows = _nvidia_smi(root)
    shown = _shown(len(rows or nodes), env, "CUDA_VISIBLE_DEVICES")
    reason = f"nvidia-smi lists {len(rows)}{shown.reason}"
    if rows and not shown.indices:
        return replace(host, reason=reason)
    if rows:
        name, memory, driver = rows[shown.indices[0]]
        return replace(
            host,
            platform="cuda",
            kind=name,
            count=len(shown.indices),
            device_memory_bytes=int(memory) * MIB if memory.isdigit() else None,
            driver=driver,
            reason=reason,
        )
    if not nodes:
        return None
    reason = f"{len(nodes)} nodes /dev/nvidia*, nvidia-smi does not answer{shown.reason}"
    if not shown.indices:
        return replace(host, reason=reason)
    told = "".join(_read(each) + "\n" for each in sorted(root.glob("proc/driver/nvidia/gpus/*/information")))
    model = re.search(r"^Model:\s*(.+)$", told, re.MULTILINE)
    driver_match = re.search(r"NVRM version:.*?\s(\d+\.[\d.]+)\s", _read(root / "proc/driver/nvidia/version"))
    return replace(
        host,
        platform="cuda",
        kind=model[1].strip() if model else "NVIDIA GPU",
        count=len(shown.indices),
        device_memory_bytes=None,
        driver=driver_match[1] if driver_match else None,
        reason=reason,
    )


def _nvidia_smi(root: Path) -> list[list[str]]:
    """[name, memory in MiB, driver version] of each GPU; empty when nvidia-smi is not there or fails."""
    for folder in ("usr/bin", "usr/local/bin", "usr/local/nvidia/bin", "usr/lib/wsl/lib"):
        program = root / folder / "nvidia-smi"
        if not program.is_file():
            continue
        query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run([program, *query], capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
        return [row for row in rows if len(row) == 3]
    return []


def _find_amd(root: Path, host: Hardware, env: Mapping[str, str]) -> Hardware | None:
    """Nodes of the kernel's compute driver that have SIMD units are GPUs; the others are CPUs."""
    if not (root / "dev/kfd").exists():
        return None
    gpus = []
    for node in sorted(root.glob("sys/class/kfd/kfd/topology/nodes/*")):
        fields = dict(re.findall(r"^(\w+) (\d+)$", _read(node / "properties"), re.MULTILINE))
        if int(fields.get("simd_count", 0)) > 0:
            gpus.append((node, int(fields.get("gfx_target_version", 0))))
    if not gpus:
        return None
    shown = _shown(len(gpus), env, "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    reason = f"/sys/class/kfd lists {len(gpus)}{shown.reason}"
    if not shown.indices:
        return replace(host, reason=reason)
    node, target = gpus[shown.indices[0]]
    # 90402 is major 9, minor 4, stepping 2; the last two are written as hexadecimal digits: gfx942
    name = f"gfx{target // 10000}{target // 100 % 100:x}{target % 100:x}"
    banks = [_read(each) for each in node.glob("mem_banks/*/properties")]
    sizes = [int(size) for bank in banks for size in re.findall(r"^size_in_bytes (\d+)$", bank, re.MULTILINE)]
    return replace(
        host,
        platform="rocm",
        kind=f"AMD GPU {name}",
        count=len(shown.indices),
        device_memory_bytes=sum(sizes) or None,
        driver=_read(root / "sys/module/amdgpu/version") or None,
        reason=reason,
    )


def _installed(package: str) -> str | None:
    """The version of an installed package, found without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    """A file's text without surrounding space; empty when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
