"""detect() on made-up machines: each test writes the files that the kernel of such a machine shows."""

import stat
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from radixmesh.backends.hardware import Hardware, detect, host_memory

MIB = 1024**2
GIB = 1024**3
NO_ENV: dict[str, str] = {}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 4 cores and 32 GiB, 24 of them available, without control groups or accelerators."""
    cpu = "processor\t: {}\nmodel name\t: AMD EPYC 9R14\n\n"
    write(
        tmp_path,
        {
            "proc/cpuinfo": "".join(cpu.format(each) for each in range(4)),
            "proc/meminfo": f"MemTotal: {32 * MIB} kB\nMemFree: 1 kB\nMemAvailable: {24 * MIB} kB\n",
        },
    )
    return tmp_path


def add_tpu(root: Path, device: str, chips: int, node: str = "dev/vfio/{}") -> None:
    for chip in range(chips):
        pci = f"sys/bus/pci/devices/0000:00:0{chip}.0"
        write(root, {f"{pci}/vendor": "0x1ae0\n", f"{pci}/device": device + "\n", node.format(chip): ""})


def add_nvidia_smi(root: Path, script: str) -> None:
    write(root, {"usr/bin/nvidia-smi": f"#!/bin/sh\n{script}\n"})
    program = root / "usr/bin/nvidia-smi"
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_cpu_machine(root: Path) -> None:
    torch = metadata.version("torch")  # the one fact that is not under `root`
    assert detect(root, NO_ENV) == Hardware(
        platform="cpu",
        kind="AMD EPYC 9R14",
        count=1,
        cores=4,
        memory_bytes=32 * GIB,
        free_bytes=24 * GIB,
        torch=torch,
        reason="no TPU on the PCI bus, no /dev/nvidia*, no AMD GPU in /sys/class/kfd",
    )


def test_this_machine_agrees_with_psutil() -> None:
    found = detect()
    assert 1 <= found.cores <= (psutil.cpu_count() or 1)
    assert 0 < found.free_bytes < found.memory_bytes <= psutil.virtual_memory().total
    assert found.kind


@pytest.mark.parametrize("group", ["/", "/pods/one", "/not/mounted/here"])
def test_memory_limit_of_cgroup_v2(root: Path, group: str) -> None:
    folder = "sys/fs/cgroup" if group == "/not/mounted/here" else f"sys/fs/cgroup{group}"
    write(
        root,
        {
            "proc/self/cgroup": f"0::{group}\n",
            f"{folder}/memory.max": f"{8 * GIB}\n",
            f"{folder}/memory.current": f"{3 * GIB}\n",
            f"{folder}/memory.stat": f"anon 5\ninactive_file {1 * GIB}\nactive_file 7\n",
        },
    )
    assert host_memory(root) == (8 * GIB, 6 * GIB)  # 8 - (3 - 1 of reclaimable page cache)


def test_tightest_cgroup_above_counts(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "0::/slice/unit\n",
            "sys/fs/cgroup/slice/unit/memory.max": "max\n",
            "sys/fs/cgroup/slice/unit/memory.current": f"{1 * GIB}\n",
            "sys/fs/cgroup/slice/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/slice/memory.current": f"{5 * GIB}\n",  # over its limit: nothing is free
        },
    )
    assert host_memory(root) == (4 * GIB, 0)


def test_memory_limit_of_cgroup_v1(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{10 * GIB}\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{9 * GIB}\n",
        },
    )
    assert host_memory(root) == (10 * GIB, 8 * GIB)


@pytest.mark.parametrize(
    ("cgroup", "file", "text", "cores"),
    [
        ("0::/", "sys/fs/cgroup/cpu.max", "150000 100000", 2),
        ("0::/", "sys/fs/cgroup/cpu.max", "max 100000", 4),
        ("1:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000", 1),
        ("1:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1", 4),
    ],
)
def test_cores_honour_the_share_of_time(root: Path, cgroup: str, file: str, text: str, cores: int) -> None:
    period = {"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    write(root, {"proc/self/cgroup": cgroup + "\n", file: text + "\n", **period})
    assert detect(root, NO_ENV).cores == cores


@pytest.mark.parametrize(
    ("device", "node", "kind", "gib"),
    [
        ("0x005e", "dev/accel{}", "TPU v4", 32),
        ("0x0063", "dev/vfio/{}", "TPU v5e", 16),
        ("0x006f", "dev/accel/accel{}", "TPU v6e", 32),
    ],
)
def test_tpu(root: Path, device: str, node: str, kind: str, gib: int) -> None:
    add_tpu(root, device, 4, node)
    found = detect(root, NO_ENV)
    assert (found.platform, found.kind, found.count) == ("tpu", kind, 4)
    assert found.device_memory_bytes == gib * GIB
    assert found.device_bandwidth is not None and found.device_bandwidth > 500e9
    assert found.reason == "4 chips on the PCI bus with device nodes"
    assert found.free_bytes == 24 * GIB  # the host's


def test_tpu_that_this_container_was_not_given(root: Path) -> None:
    add_tpu(root, "0x0063", 1, node="elsewhere/{}")
    assert detect(root, NO_ENV).platform == "cpu"


def test_vfio_node_of_something_else_is_no_tpu(root: Path) -> None:
    pci = "sys/bus/pci/devices/0000:00:01.0"
    write(root, {f"{pci}/vendor": "0x8086\n", f"{pci}/device": "0x0063\n", "dev/vfio/0": ""})
    assert detect(root, NO_ENV).platform == "cpu"


def test_jax_platforms_hides_accelerators(root: Path) -> None:
    add_tpu(root, "0x0063", 1)
    hidden = detect(root, {"JAX_PLATFORMS": "cpu"})
    assert (hidden.platform, hidden.reason) == ("cpu", "JAX_PLATFORMS=cpu hides any accelerator")
    assert detect(root, {"JAX_PLATFORMS": "tpu,cpu"}).platform == "tpu"


def test_nvidia_by_nvidia_smi(root: Path) -> None:
    write(root, {"dev/nvidia0": "", "dev/nvidia1": ""})
    line = "NVIDIA H100 80GB HBM3, 81559, 580.65.06"
    add_nvidia_smi(root, f'test "$2" = "--format=csv,noheader,nounits" && echo "{line}" && echo "{line}"')
    found = detect(root, NO_ENV)
    assert (found.platform, found.kind, found.count) == ("cuda", "NVIDIA H100 80GB HBM3", 2)
    assert (found.device_memory_bytes, found.driver) == (81559 * 1024**2, "580.65.06")
    assert found.reason == "nvidia-smi lists 2"


@pytest.mark.parametrize(
    ("listed", "count", "kind"),
    [
        ("1", 1, "NVIDIA GeForce RTX 3060"),
        ("0,1", 2, "NVIDIA GeForce RTX 4090"),
        ("1, 0", 2, "NVIDIA GeForce RTX 3060"),
        ("1,2,0", 1, "NVIDIA GeForce RTX 3060"),  # there is no third, and CUDA stops there
        ("GPU-5a1f0c3d", 1, "NVIDIA GeForce RTX 4090"),
    ],
)
def test_cuda_visible_devices_chooses_gpus(root: Path, listed: str, count: int, kind: str) -> None:
    write(root, {"dev/nvidia0": "", "dev/nvidia1": ""})
    lines = ("NVIDIA GeForce RTX 4090, 24564, 580.65.06", "NVIDIA GeForce RTX 3060, 12288, 580.65.06")
    add_nvidia_smi(root, "\n".join(f'echo "{line}"' for line in lines))
    found = detect(root, {"CUDA_VISIBLE_DEVICES": listed})
    assert (found.platform, found.count, found.kind) == ("cuda", count, kind)
    assert found.device_memory_bytes == (24564 if "4090" in kind else 12288) * 1024**2
    assert found.reason == f"nvidia-smi lists 2, CUDA_VISIBLE_DEVICES={listed} shows {count}"


@pytest.mark.parametrize("listed", ["", "-1", "none"])
@pytest.mark.parametrize("smi", [True, False])
def test_cuda_visible_devices_hides_all_gpus(root: Path, listed: str, smi: bool) -> None:
    write(root, {"dev/nvidia0": ""})
    if smi:
        add_nvidia_smi(root, 'echo "NVIDIA H100, 81559, 580.65.06"')
    found = detect(root, {"CUDA_VISIBLE_DEVICES": listed})
    assert (found.platform, found.count, found.driver) == ("cpu", 1, None)
    assert found.reason.endswith(f", CUDA_VISIBLE_DEVICES={listed} shows 0")


@pytest.mark.parametrize("broken", [None, "exit 9", "echo No devices were found"])
def test_nvidia_without_a_working_nvidia_smi(root: Path, broken: str | None) -> None:
    write(
        root,
        {
            "dev/nvidia0": "",
            "dev/nvidiactl": "",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Kernel Module  535.104.05  Sat Aug\n",
            "proc/driver/nvidia/gpus/0000:3b:00.0/information": "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ: 5\n",
        },
    )
    if broken:
        add_nvidia_smi(root, broken)
    found = detect(root, NO_ENV)
    assert (found.platform, found.kind, found.count) == ("cuda", "NVIDIA A100-SXM4-40GB", 1)
    assert (found.device_memory_bytes, found.driver) == (None, "535.104.05")


def test_nvidia_driver_without_device_nodes_is_a_cpu_machine(root: Path) -> None:
    write(
        root, {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.1  Sat\n"}
    )
    assert detect(root, NO_ENV).platform == "cpu"


def test_amd(root: Path) -> None:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    gpu = "simd_count 1216\ngfx_target_version 90402\nvendor_id 4098\n"
    write(
        root,
        {
            "dev/kfd": "",
            f"{nodes}/0/properties": "cpu_cores_count 96\nsimd_count 0\ngfx_target_version 0\n",
            f"{nodes}/1/properties": gpu,
            f"{nodes}/1/mem_banks/0/properties": f"heap_type 1\nsize_in_bytes {192 * GIB}\nflags 0\n",
            f"{nodes}/2/properties": gpu,
            "sys/module/amdgpu/version": "6.12.12\n",
        },
    )
    found = detect(root, NO_ENV)
    assert (found.platform, found.kind, found.count) == ("rocm", "AMD GPU gfx942", 2)
    assert (found.device_memory_bytes, found.driver) == (192 * GIB, "6.12.12")
    assert detect(root, {"ROCR_VISIBLE_DEVICES": "1"}).count == 1
    hidden = detect(root, {"HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "1"})
    assert (hidden.platform, hidden.device_memory_bytes) == ("cpu", None)
    assert hidden.reason == "/sys/class/kfd lists 2, HIP_VISIBLE_DEVICES= shows 0"


@pytest.mark.parametrize(("target", "name"), [(90010, "gfx90a"), (90500, "gfx950"), (110000, "gfx1100")])
def test_amd_target_names(root: Path, target: int, name: str) -> None:
    properties = f"simd_count 4\ngfx_target_version {target}\n"
    write(root, {"dev/kfd": "", "sys/class/kfd/kfd/topology/nodes/1/properties": properties})
    assert detect(root, NO_ENV).kind == f"AMD GPU {name}"
