"""The TPU kernel compiled by the TPU's own compiler for chips that are not here."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from radixmesh.kernels.paged_attention.tpu_blocks import VMEM_MIB, chosen_sizes, vmem_bytes
from radixmesh.sharding.topology import Topology

pytestmark = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed (extra tpu-compile)"
)
DEVICES = {"v4": "v4:2x2x1", "v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1", "tpu7x": "tpu7x:1x1x1"}
LLAMA_8B: dict[str, Any] = dict(heads=32, kv_heads=8, head_dim=128, page_size=64)
LLAMA_8B_SLICE: dict[str, Any] = dict(heads=4, kv_heads=1, head_dim=128, page_size=16)
GEMMA_4B: dict[str, Any] = dict(heads=8, kv_heads=4, head_dim=256, page_size=64)
SMOLLM: dict[str, Any] = dict(heads=9, kv_heads=3, head_dim=64, page_size=32)
CASES = [
    ("v4", LLAMA_8B, 2048, "bfloat16"),
    ("v4", LLAMA_8B_SLICE, 16, "int8"),
    ("v4", {**GEMMA_4B, "page_size": 256}, 256, "bfloat16"),
    ("v5e", LLAMA_8B, 16, "bfloat16"),
    ("v5e", GEMMA_4B, 128, "int8"),
    ("v5p", SMOLLM, 16, "float8_e4m3fn"),
    ("v6e", LLAMA_8B, 256, "float8_e4m3fn"),
    ("v6e", SMOLLM, 64, "bfloat16"),
    ("tpu7x", LLAMA_8B_SLICE, 512, "bfloat16"),
]


@pytest.mark.parametrize("chip, model, tokens, dtype", CASES)
def test_compiles_within_its_estimate(chip, model, tokens, dtype) -> None:
    from radixmesh.kernels.paged_attention.tpu_aot import Problem, compile_kernel, vmem_used

    problem = Problem(tokens=tokens, pool_dtype=dtype, **model)
    compiled = compile_kernel(problem, Topology.parse(DEVICES[chip]).devices()[0], chip)
    shape = problem.shape
    used = vmem_used(compiled)
    assert used is not None and used <= vmem_bytes(shape, chosen_sizes(chip, shape))
    memory: Any = compiled.memory_analysis()
    pool_bytes = 65536 * model["kv_heads"] * 2 * model["head_dim"] * shape.pool_itemsize
    assert memory.alias_size_in_bytes >= pool_bytes, "the pool is written in place"
    assert memory.temp_size_in_bytes < 64 << 20


def test_256_requests_of_131072_tokens_compile() -> None:
    from radixmesh.kernels.paged_attention.tpu_aot import Problem, compile_kernel

    problem = Problem(tokens=256, table_entries=256 * 131072 // 16, **LLAMA_8B_SLICE)
    compile_kernel(problem, Topology.parse("v6e:1x1").devices()[0], "v6e")


def test_vmem_is_what_the_topology_says() -> None:
    facts = json.loads((Path(__file__).parents[2] / "sharding/tpu_chips.json").read_text())
    assert VMEM_MIB == {chip: facts[chip]["vmem_mib"] for chip in VMEM_MIB}
