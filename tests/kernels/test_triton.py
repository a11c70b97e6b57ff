"""Triton kernels without a GPU: run in Triton's interpreter, and compiled for cards that are not here."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "operation, at_least",
    [
        ("attention", 80),
        ("rope or embeddings", 21),
        ("norms or gates", 18),
        ("sums", 13),
        ("products_of", 91),
        ("greedy or draws or rows_are", 34),
    ],
)
def test_interpreted_kernels_equal_the_references(operation: str, at_least: int) -> None:
    """In a process of its own: whether Triton interprets or compiles is settled when it is imported."""
    files = ["tests/kernels/triton_cases.py", "tests/kernels/triton_shared_cases.py"]
    command = [sys.executable, "-m", "pytest", "-q", *files, "-k", operation]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= at_least and "skipped" not in done.stdout, done.stdout[-200:]


def gpu_matrix() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("gpu_matrix", ROOT / "scripts/gpu_matrix.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_about_gpus_names_every_kernel() -> None:
    script = gpu_matrix()
    page = (ROOT / "docs/gpu-matrix.md").read_text()
    assert all(f"| {each.name} |" in page for target in script.TARGETS for each in script.launches(target))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "gfx90a", "gfx942", "gfx950"])
def test_every_kernel_compiles_and_stays_in_registers(architecture: str) -> None:
    """The launches of the product, of attention one shape; `docs/gpu-matrix.md` has the others."""
    script = gpu_matrix()
    launches = [
        each for each in script.launches(architecture)
        if "attention" not in each.name or "pages of 16" not in each.name and "head_dim 128" in each.name
    ]  # fmt: skip
    assert len({each.kernel for each in launches}) == (14 if architecture.startswith("gfx") else 15)
    needs = {each.name: script.compiled(each, architecture) for each in launches}
    two_in_a_core = [need for name, need in needs.items() if "decode" in name and "shared" not in name]
    assert all(need.registers <= 256 for need in two_in_a_core)
    # a word or two of addresses may go to the stack; a spilled accumulator would be hundreds of bytes
    assert not {name: need for name, need in needs.items() if need.spilled > 16}
