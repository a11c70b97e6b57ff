"""Tell what this machine has, which backend would serve a model and why, and what is missing.

Nothing is started and nothing is fetched. The exit status is 0 whatever is found.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..config import EngineConfig
from .joints import Joints, Machine
from .options import add_options, read_options


@dataclass(frozen=True)
class Package:
    """A Python package: what it does for us, and on which platforms it must be there."""

    name: str
    purpose: str
    platforms: tuple[str, ...] = ("cpu", "tpu", "cuda", "rocm")
    install: str = ""  # what to give pip; default: its name


PACKAGES = (
    Package("numpy", "the engine's arrays"),
    Package("jax", "the JAX backend"),
    Package("jaxlib", "XLA for the JAX backend"),
    Package("libtpu", "TPU driver and compiler", ("tpu",), "'jax[tpu]'"),
    Package("flax", "the decoder's modules"),
    Package("torch", "the PyTorch backend, and the test oracle", ("cuda", "rocm")),
    Package("triton", "the PyTorch backend's GPU kernels", ("cuda", "rocm")),
    Package("transformers", "configurations, tokenizers and chat templates"),
    Package("tokenizers", "tokenizers"),
    Package("jinja2", "chat templates"),
    Package("safetensors", "checkpoints"),
    Package("gguf", "GGUF checkpoints"),
    Package("huggingface_hub", "download of models"),
    Package("fastapi", "the HTTP server"),
    Package("uvicorn", "the HTTP server"),
    Package("pydantic", "checks of HTTP requests"),
    Package("msgspec", "messages between server and engine"),
    Package("pyzmq", "messages between server and engine"),
    Package("prometheus_client", "metrics"),
    Package("psutil", "memory and processes"),
    Package("tqdm", "progress bars"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command: the engine's too, for what would serve depends on them."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(parser, EngineConfig)


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Print the report."""
    machine = joints.survey(EngineConfig(**read_options(arguments, EngineConfig)))
    report = examine(joints.version, machine)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)
    return 0


def examine(own_version: str, machine: Machine) -> dict[str, Any]:
    """Everything the report says, as plain values; sizes in bytes."""
    packages = {each.name: installed_version(each.name) for each in PACKAGES}
    needed = [each for each in PACKAGES if machine.hardware["platform"] in each.platforms]
    return {
        "radixmesh": own_version,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "hardware": machine.hardware,
        "choices": [choice._asdict() for choice in machine.choices],
        "packages": packages,
        "missing": [
            {**asdict(each), "install": f"pip install {each.install or each.name}"}
            for each in needed
            if packages[each.name] is None
        ],
        "models": machine.models,
        "folders": {
            purpose: {"path": path, "bytes": folder_size(Path(path))}
            for purpose, path in machine.folders.items()
        },
    }


def installed_version(name: str) -> str | None:
    """The version of an installed package, found without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def folder_size(folder: Path) -> int | None:
    """Bytes of all files in a folder, links not followed; None when it is not there."""
    if not folder.is_dir():
        return None
    return sum(each.lstat().st_size for each in folder.rglob("*") if not each.is_dir())


def print_report(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    print(f"radixmesh {report['radixmesh']}, Python {report['python']} ({report['executable']})")
    print(report["system"])
    _section("Hardware", {name: _shown(name, value) for name, value in report["hardware"].items()})
    choices = {each["name"]: f"{each['value']} because {each['reason']}" for each in report["choices"]}
    _section("What would serve", choices)
    _section("Packages", {name: found or "not installed" for name, found in report["packages"].items()})
    models = {
        name: path or "not here; fetched when first asked for" for name, path in report["models"].items()
    }
    _section("Embedded models", models)
    folders = {
        purpose: f"{each['path']} ({'empty' if each['bytes'] is None else _size(each['bytes'])})"
        for purpose, each in report["folders"].items()
    }
    _section("Caches", folders)
    missing = {each["name"]: f"{each['purpose']}; {each['install']}" for each in report["missing"]}
    _section("Missing", missing or {"nothing": "all that is needed here is installed"})


def _section(title: str, rows: dict[str, str]) -> None:
    if rows:
        width = max(map(len, rows))
        print(f"\n{title}")
        for name, text in rows.items():
            print(f"  {name:{width}}  {text}")


def _shown(name: str, value: str | int | None) -> str:
    if value is None:
        return "unknown"
    return _size(int(value)) if name.endswith("_bytes") else str(value)


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
