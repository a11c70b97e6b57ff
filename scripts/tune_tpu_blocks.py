"""Write `kernels/paged_attention/tpu_blocks.json`: block sizes that the TPU's compiler has accepted.

    PYTHONPATH=src python scripts/tune_tpu_blocks.py                  # all; an hour or two on two cores
    PYTHONPATH=src python scripts/tune_tpu_blocks.py --chip v4 --page-size 64

For each chip and shape, sizes are taken from the largest down until one compiles for 2,048 tokens within
three quarters of VMEM. The rule that serves other shapes stops at half by its own, higher estimate. Needs
libtpu and no TPU; entries that the file has already stay, unless --again.
"""

import argparse
import json
import sys
from pathlib import Path

import jax

from radixmesh.kernels.paged_attention import tpu_blocks
from radixmesh.kernels.paged_attention.tpu_aot import Problem, compile_kernel, vmem_used
from radixmesh.sharding.topology import Topology

TABLE = Path(__file__).parents[1] / "kernels/paged_attention/tpu_blocks.json"
SLICES = {"v4": "v4:2x2x1", "v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1", "tpu7x": "tpu7x:1x1x1"}
# heads, kv_heads, head_dim of one device: Llama-3.1-8B whole and an eighth, Llama-3.3-70B an eighth,
# Qwen3-0.6B, Qwen3-32B, Gemma-3-4B, Llama-3.2-1B
HEADS = ((32, 8, 128), (4, 1, 128), (8, 1, 128), (16, 8, 128), (64, 8, 128), (8, 4, 256), (32, 8, 64))
TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", action="append", choices=SLICES, help="default: all five")
    parser.add_argument("--page-size", action="append", type=int, help="default: 16, 64 and 128")
    parser.add_argument("--pool-dtype", action="append", help="default: bfloat16, float8_e4m3fn and int8")
    parser.add_argument("--again", action="store_true", help="replace entries that are there")
    arguments = parser.parse_args()
    dtypes = arguments.pool_dtype or ("bfloat16", "float8_e4m3fn", "int8")
    problems = [
        Problem(
            tokens=TOKENS, heads=heads, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size,
            pool_dtype=dtype,
        )
        for dtype in dtypes
        for page_size in arguments.page_size or (64, 16, 128)
        for heads, kv_heads, head_dim in HEADS
    ]  # fmt: skip
    for problem in problems:
        for chip in arguments.chip or SLICES:
            table = json.loads(TABLE.read_text())
            key = tpu_blocks.table_key(chip, problem.shape)
            if key not in table or arguments.again:
                table[key] = largest_that_compiles(problem, chip)
                lines = (f"{json.dumps(key)}: {json.dumps(sizes)}" for key, sizes in sorted(table.items()))
                TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def largest_that_compiles(problem: Problem, chip: str) -> list[int]:
    """The fields of `BlockSizes`, in order."""
    device = Topology.parse(SLICES[chip]).devices()[0]
    for sizes in tpu_blocks.ladder(chip, problem.shape):
        try:
            used = vmem_used(compile_kernel(problem, device, chip, sizes))
        except jax.errors.JaxRuntimeError as error:
            if "vmem" not in str(error):
                raise
            continue
        key, mib = tpu_blocks.table_key(chip, problem.shape), "?" if used is None else f"{used / 2**20:.1f}"
        print(f"{key}: {sizes}, {mib} MiB", file=sys.stderr, flush=True)
        return list(vars(sizes).values())
    raise AssertionError("the ladder ends with an error")


if __name__ == "__main__":
    main()
