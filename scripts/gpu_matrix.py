"""Compile every Triton kernel for GPUs that are not here, and write what each needs to docs/gpu-matrix.md.

    python scripts/gpu_matrix.py [--check]

The launches are those of the product: each operation is called on CPU tensors while Triton's launcher
records instead of running. With --check nothing is written; any kernel that fails to compile is an error.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from radixmesh.kernels.all_reduce import triton as all_reduce  # noqa: E402
from radixmesh.kernels.all_reduce.inbox import bits_of, empty_inbox, inbox_shape  # noqa: E402
from radixmesh.kernels.embedding import triton as embedding  # noqa: E402
from radixmesh.kernels.gated_activation.triton import gated_activation  # noqa: E402
from radixmesh.kernels.linear import triton as linear  # noqa: E402
from radixmesh.kernels.linear.torch_ref import Norm  # noqa: E402
from radixmesh.kernels.paged_attention import triton as attention  # noqa: E402
from radixmesh.kernels.paged_attention.rows import RaggedRows  # noqa: E402
from radixmesh.kernels.rms_norm import triton as rms_norm  # noqa: E402
from radixmesh.kernels.rope_kv_write import triton as rope  # noqa: E402
from radixmesh.kernels.rope_kv_write.torch_ref import HeadNorms  # noqa: E402
from radixmesh.kernels.sampling.triton import choose_tokens  # noqa: E402
from radixmesh.kernels.tuning import Target  # noqa: E402

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
CORES = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx90a": 104, "gfx942": 304, "gfx950": 256}
POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
    torch.int16: "*i16", torch.int64: "*i64", torch.float8_e4m3fn: "*fp8e4nv", torch.int8: "*i8",
}  # fmt: skip


class Launch(NamedTuple):
    """One kernel as the product launches it."""

    name: str
    kernel: JITFunction
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, int]


class Need(NamedTuple):
    """What a compiled kernel needs."""

    registers: int  # a thread; AMD: vector registers
    spilled: int  # bytes a thread
    shared: int  # bytes a program


def launches(architecture: str) -> list[Launch]:
    """Every kernel for 8 KV heads of 128 (Llama 3.1 8B) in bfloat16, attention also of 64 and 256."""
    target, found = Target(architecture, CORES[architecture]), []
    case = ""

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        keys = f", {kwargs['PART']} keys" if "PART" in kwargs else ""
        found.append(_launch(case + keys, kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs))

    with ExitStack() as stack:
        stack.enter_context(patch.object(JITFunction, "run", record))
        for module in (all_reduce, attention, embedding, linear, rms_norm, rope):
            stack.enter_context(patch.object(module, "target_of", lambda device: target))
        for case, call in _cases(target):  # noqa: B007 (`record` reads case)
            call()
    return found


def _cases(target: Target) -> Iterator[tuple[str, Any]]:
    bf16, float8 = torch.bfloat16, target.converts_float8

    def attend(head_dim: int, pool: torch.dtype, page_size: int, decode: bool) -> None:
        q = torch.empty(64, 32, head_dim, dtype=bf16)
        pages = torch.empty(128, 8, page_size, 2 * head_dim, dtype=pool)
        indices = torch.zeros(64, dtype=torch.int32)
        rows = RaggedRows(indices, indices, indices, indices, indices, 16, 16 if decode else 0)
        attention.ragged_paged_attention(q, pages, rows, scale=1.0)
        if decode:
            rows = rows._replace(group_rows=indices, shared_pages=indices)
            attention.ragged_paged_attention(q, pages, rows, scale=1.0)

    shapes = [(64, bf16, 16), (128, bf16, 16), (128, bf16, 64), (256, bf16, 64)]
    shapes += [(128, torch.float8_e4m3fn, 64)] if float8 else []
    for decode in (True, False):
        for head_dim, pool, page_size in shapes:
            name = f"{'decode' if decode else 'prefill'} attention, head_dim {head_dim}"
            name += f", pages of {page_size}" if pool == bf16 else ", float8 pool"
            yield name, partial(attend, head_dim, pool, page_size, decode)

    def write(pool: torch.dtype) -> None:
        q, k, v = torch.empty(64, 48, 128, dtype=bf16).split([32, 8, 8], dim=1)
        table, words = torch.empty(4096, 128), torch.zeros(64, dtype=torch.int32)
        norms = HeadNorms(torch.empty(128, dtype=bf16), torch.empty(128, dtype=bf16), 1e-6, 0.0)
        pages = torch.empty(128, 8, 64, 256).to(pool)
        rope.rope_and_write(q, k, v, table, words, pages, words, norms=norms)

    words, table = torch.zeros(64, dtype=torch.int32), torch.empty(128256, 4096, dtype=bf16)
    yield "embedding of 4096", lambda: embedding.embed(words, words, table, words, words)
    yield "rope and KV write, normed heads", lambda: write(bf16)
    if float8:
        yield "rope and KV write, float8 pool", lambda: write(torch.float8_e4m3fn)
    x, weight = torch.empty(64, 4096, dtype=bf16), torch.empty(4096, dtype=bf16)
    yield "RMSNorm of 4096", lambda: rms_norm.rms_norm(x, weight, 1e-6)
    yield "RMSNorm of 4096, added to a residual", lambda: rms_norm.rms_norm(x, weight, 1e-6, onto=x)
    few, more, norm = torch.empty(16, 4096, dtype=bf16), torch.empty(32, 4096, dtype=bf16), Norm(weight, 1e-6)
    qkv, gate_up = torch.empty(6144, 4096, dtype=bf16), torch.empty(28672, 4096, dtype=bf16)
    wide, down = torch.empty(16, 14336, dtype=bf16), torch.empty(4096, 14336, dtype=bf16)
    if linear.summed_sizes(target, (3072, 4096), 8, normed=True) is not None:
        half = torch.empty(3072, 4096, dtype=bf16)
        yield "q, k and v of 8 rows, one of 2 ranks", lambda: linear.linear(few[:8], half, norm=norm)
    yield "q, k and v of 16 rows", lambda: linear.linear(few, qkv, norm=norm)
    yield "gated MLP of 16 rows", lambda: linear.linear(few, gate_up, norm=norm, gate="silu")
    yield "gated MLP of 32 rows", lambda: linear.linear(more, gate_up, norm=norm, gate="silu")
    yield "last product of 16 rows", lambda: linear.linear(wide, down, onto=few)
    yield "gate, silu", lambda: gated_activation(torch.empty(64, 28672, dtype=bf16), "silu")
    yield "gate, gelu", lambda: gated_activation(torch.empty(64, 28672, dtype=bf16), "gelu_tanh")
    if not target.is_amd:
        inbox = empty_inbox(0, torch.empty(inbox_shape(2, 64 * 4096), dtype=bits_of(bf16)), [0, 0])
        yield "sum over 2 ranks and addition", lambda: all_reduce.all_reduce_add(x, x, inbox)
    numbers, words = torch.empty(64), torch.zeros(64, dtype=torch.int32)
    logits = torch.empty(64, 128256)
    yield "sampling", lambda: choose_tokens(logits, numbers, words, numbers, numbers, words, words)


def _launch(name: str, kernel: JITFunction, given: dict[str, Any]) -> Launch:
    """What Triton's launcher would compile: pointers and integers that 16 divides are known to be so."""
    signature, constants, attributes = {}, {}, {}
    for index, param in enumerate(kernel.params):
        value = given.pop(param.name)
        signature[param.name] = "constexpr"
        if param.is_constexpr or (isinstance(value, int) and value == 1 and not param.do_not_specialize):
            constants[param.name] = value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[param.name] = "i32"
            if value % 16 == 0 and not param.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[param.name] = "fp32"
    return Launch(f"{name}: `{kernel.__name__}`", kernel, signature, constants, attributes, given)


def compiled(launch: Launch, architecture: str) -> Need:
    """Compile for real; raises what the compiler raises."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    result = triton.compile(source, target=TARGETS[architecture], options=launch.options)
    if "amdgcn" in result.asm:
        text = result.asm["amdgcn"]
        number = {name: int(value) for name, value in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
        return Need(number["vgpr_count"], 4 * number["vgpr_spill_count"], result.metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [tool, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if usage is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text!r}")
    return Need(int(usage[1]), int(usage[2]) + int(usage[3]), result.metadata.shared)


def page(needs: dict[str, dict[str, Need]]) -> str:
    """The table of docs/gpu-matrix.md."""
    lines = [
        "# What each Triton kernel needs on each GPU",
        "",
        f"Written by `scripts/gpu_matrix.py` with Triton {triton.__version__}, which compiles without a GPU."
        " Each cell: registers a thread (AMD: vector registers), bytes a thread spills, KiB of shared memory"
        " a program. A dash: not compiled there, because Triton cannot convert float8 on that GPU, because"
        " RCCL sums on AMD's, or because another kernel makes the product.",
        "",
        "| kernel | " + " | ".join(TARGETS) + " |",
        "|---" * (len(TARGETS) + 1) + "|",
    ]
    for name in dict.fromkeys(name for each in needs.values() for name in each):
        cells = []
        for architecture in TARGETS:
            need = needs[architecture].get(name)
            cells.append(f"{need.registers}, {need.spilled}, {-(-need.shared // 1024)}" if need else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compile all, then write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    needs = {
        architecture: {launch.name: compiled(launch, architecture) for launch in launches(architecture)}
        for architecture in TARGETS
    }
    if not check:
        (ROOT / "docs/gpu-matrix.md").write_text(page(needs))


if __name__ == "__main__":
    main()
