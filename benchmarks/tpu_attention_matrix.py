"""Compile the TPU attention kernel for five chips, beside upstream jax's own, and write down how they fare.

    PYTHONPATH=src python benchmarks/tpu_attention_matrix.py                # all; an hour on two cores
    PYTHONPATH=src python benchmarks/tpu_attention_matrix.py --chip v6e --tokens 16

Needs libtpu and no TPU. Results are kept in a JSON file as they come; what it has already is not compiled
again. The page is written from it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import ragged_paged_attention as upstream
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from radixmesh.kernels.paged_attention.tpu_aot import Problem, compile_kernel, vmem_used
from radixmesh.kernels.paged_attention.tpu_blocks import VMEM_MIB
from radixmesh.sharding.topology import Topology

ROOT = Path(__file__).parents[1]
SLICES = {"v4": "v4:2x2x1", "v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1", "tpu7x": "tpu7x:1x1x1"}
# heads, kv_heads, head_dim, window
MODELS = {
    "Llama-3.1-8B": (32, 8, 128, None),
    "Llama-3.1-8B, 1 of 8": (4, 1, 128, None),
    "Llama-3.3-70B, 1 of 8": (8, 1, 128, None),
    "Qwen3-0.6B": (16, 8, 128, None),
    "Qwen3-32B": (64, 8, 128, None),
    "Gemma-3-4B": (8, 4, 256, 1024),
}
LONG = "256 requests of 131,072 tokens"
PAGE_SIZE, CONTEXT, LONG_CONTEXT = 64, 4096, 131072
# what upstream is tried with, in turn: pages and queries of a block. Its own table asks for a device.
UPSTREAM_BLOCKS = ((16, 32), (8, 32), (4, 16), (1, 8))

PAGE = """# The attention kernel compiled for TPUs that are not here

Written by `benchmarks/tpu_attention_matrix.py`: libtpu's own compiler, bfloat16, page size {page_size}, a
pool of 65,536 tokens. Ours is `kernels/paged_attention/pallas_tpu.py` with the block sizes that it chooses by
itself; upstream is `jax.experimental.pallas.ops.tpu.ragged_paged_attention` of jax {jax}, with the first of
the block sizes {blocks} (pages, queries) that compiles and three quarters of VMEM as its limit.

- **VMEM**: what the kernel takes, MiB, as the compiler laid it out; "compiles" where libtpu could not
  print the program, because it hands something around the kernel to SparseCores.
- **MB**: bytes moved by the compiler's cost analysis. Ours passes an estimate, which counts the whole pool
  as live keys and reads them once; upstream passes none, so that the compiler sees only what surrounds
  the kernel. Ours writes the new keys and values into the pool, in place; upstream leaves that to the caller.
- **seconds**: to trace and compile, on two busy cores.
- {long}: rows of the table at page size 16, where a page table in scalar memory would take 8 MiB.

A failure is given in the compiler's words; what is blank has not been compiled yet.

"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", action="append", choices=SLICES, help="default: all five")
    parser.add_argument("--tokens", action="append", type=int, help="default: 16, 256 and 2048")
    parser.add_argument("--json", type=Path, default=ROOT / "docs/tpu-kernel-matrix.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/tpu-kernel-matrix.md")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for key, compile_case in cases(arguments.chip or list(SLICES), arguments.tokens or [16, 256, 2048]):
        if key not in found:
            found[key] = outcome(compile_case)
            print(key, found[key], file=sys.stderr, flush=True)
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    arguments.page.write_text(page(found))


def cases(chips: list[str], tokens: list[int]) -> list[tuple[str, Callable[[], jax.stages.Compiled]]]:
    """("chip | model | tokens | whose", a call that compiles it)."""
    found: list[tuple[str, Callable[[], jax.stages.Compiled]]] = []
    for chip in chips:
        problems = {
            f"{model} | {count}": (count, CONTEXT, PAGE_SIZE, *shape)
            for count in tokens
            for model, shape in MODELS.items()
        }
        problems[f"{LONG} | 256"] = (256, LONG_CONTEXT, 16, *MODELS["Llama-3.1-8B, 1 of 8"])
        for name, problem in problems.items():
            found.append((f"{chip} | {name} | ours", partial(compile_ours, chip, *problem)))
            found.append((f"{chip} | {name} | upstream", partial(compile_upstream, chip, *problem)))
    return found


def outcome(compile_case: Callable[[], jax.stages.Compiled]) -> dict[str, Any]:
    """What is kept of one compilation."""
    started = time.monotonic()
    try:
        compiled = compile_case()
    except Exception as error:  # a compiler fails in many ways, and each is a result here
        words = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {words.split('HLO name', 1)[-1][:200]}"}
    cost: Any = compiled.cost_analysis()
    return {
        "vmem": vmem_used(compiled),
        "bytes": cost["bytes accessed"],
        "seconds": round(time.monotonic() - started, 1),
    }


def compile_ours(chip: str, tokens: int, context: int, page_size: int, *shape: Any) -> jax.stages.Compiled:
    heads, kv_heads, head_dim, _ = shape  # the window is traced
    problem = Problem(
        tokens=tokens, heads=heads, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size,
        table_entries=256 * context // page_size if context == LONG_CONTEXT else 0,
    )  # fmt: skip
    return compile_kernel(problem, Topology.parse(SLICES[chip]).devices()[0], chip)


def compile_upstream(
    chip: str, tokens: int, context: int, page_size: int, *shape: Any
) -> jax.stages.Compiled:
    heads, kv_heads, head_dim, window = shape
    mesh = Mesh(np.array(Topology.parse(SLICES[chip]).devices()[:1]), ("one",))
    array = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))
    rows = min(tokens, 256)
    arrays = [
        array((tokens, heads, head_dim), jnp.bfloat16),
        array((65536 // page_size, page_size, 2 * kv_heads, head_dim), jnp.bfloat16),
        array((rows,), jnp.int32),
        array((rows, context // page_size), jnp.int32),
        array((rows + 1,), jnp.int32),
        array((1,), jnp.int32),
    ]
    for last, (pages, queries) in enumerate(UPSTREAM_BLOCKS, 1 - len(UPSTREAM_BLOCKS)):
        call = partial(
            upstream.ragged_paged_attention, sm_scale=head_dim**-0.5, sliding_window=window,
            num_kv_pages_per_block=pages, num_queries_per_block=queries,
            vmem_limit_bytes=VMEM_MIB[chip] * (3 << 18),
        )  # fmt: skip
        try:
            with jax.set_mesh(mesh):
                return jax.jit(call).lower(*arrays).compile()
        except Exception:  # the next blocks are smaller; the last ones' error is the result
            if not last:
                raise
    raise AssertionError("no blocks to try")


def page(found: dict[str, Any]) -> str:
    """The document, a table for each chip."""
    blocks = ", ".join(map(str, UPSTREAM_BLOCKS))
    text = [PAGE.format(page_size=PAGE_SIZE, jax=jax.__version__, blocks=blocks, long=LONG)]
    for chip in SLICES:
        rows = sorted({tuple(key.split(" | ")[1:3]) for key in found if key.startswith(f"{chip} |")})
        if not rows:
            continue
        text += [f"## {chip}: {VMEM_MIB[chip]} MiB of VMEM", ""]
        text += [
            "| model | tokens | ours: VMEM | MB | seconds | upstream: VMEM | MB | seconds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for model, tokens in sorted(rows, key=lambda row: (row[0] == LONG, row[0], int(row[1]))):
            cells = [
                cell for whose in ("ours", "upstream")
                for cell in three_cells(found.get(f"{chip} | {model} | {tokens} | {whose}"))
            ]  # fmt: skip
            text.append(f"| {model} | {tokens} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


def three_cells(result: dict[str, Any] | None) -> list[str]:
    if result is None:
        return ["", "", ""]
    if "error" in result:
        return [f"fails: {result['error'].replace('|', '/')}", "", ""]
    vmem = "compiles" if result["vmem"] is None else f"{result['vmem'] / 2**20:.1f}"
    return [vmem, f"{result['bytes'] / 1e6:,.1f}", f"{result['seconds']:.1f}"]


if __name__ == "__main__":
    main()
