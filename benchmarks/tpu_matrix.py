"""Compile the steps that serve for TPU slices that are not here, and write down what the compiler says.

    python benchmarks/tpu_matrix.py                     # every slice and model; hours on two cores
    python benchmarks/tpu_matrix.py --topology v6e:1x1 --model qwen3-0.6b

Each pair of slice and model is laid out over all devices of the slice (`tensor`) and compiled at 8, 64 and
256 decode rows and for a prefill chunk of 2,048 tokens, with as much KV pool as fits. Results are kept in
a JSON file as they come; pairs that it has already are not compiled again. The page is written from it.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from radixmesh.backends.planner import make_plan
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.plan import PlanOptions

ROOT = Path(__file__).parents[1]
TOPOLOGIES = ("v6e:1x1", "v5e:2x4", "v6e:2x4", "v5p:2x2x1", "tpu7x:2x2x1")
# by how much they are asked for
MODELS = (
    "llama-3.1-8b", "qwen3-0.6b", "llama-3.2-1b", "gemma-3-4b", "qwen3-8b", "qwen3-32b", "llama-3.3-70b",
    "gemma-3-27b",
)  # fmt: skip
ROWS = (8, 64, 256)
CONTEXTS = (2048, 1024, 512, 256)  # the longest of which the pool holds 256 requests
TEMPORARIES = 0.02  # of a device's memory
TRAFFIC = 1.10  # of weights and live KV read once
ARITHMETIC = 0.05  # by which the planner's memory may miss the compiler's

SUMMARY = ("model", "slice", "compiles", "HBM", "KV tokens", "compile seconds", "bytes ratio")
COLUMNS = (
    "model",
    "pool",
    "step",
    "arguments",
    "temporaries",
    "code",
    "in place",
    "HBM",
    "transfers",
    "seconds",
)
PAGE = """# Steps compiled for TPUs that are not here

Written by `benchmarks/tpu_matrix.py`: the step that serves (`backends/jax/step.py`, our attention
kernel inside), compiled by libtpu's own compiler from `config.json` facts alone, bfloat16, page size 64,
each model over all devices of the slice. Figures are of one device.

- **HBM**: arguments, temporaries and code of the step that takes most, and of what a program may use.
- **KV tokens**: of all devices together, in {fraction} of the memory less the weights.
- **compile seconds**: of all steps of the pair, one after the other, on two busy cores.
- **bytes ratio**: what a decode step moves to and from HBM, by the compiled program, over weights and live KV
  read once; of the step where it is largest.

{summary}

## The steps

- **pool**: the KV tokens. It is an argument of the step; "in place" says that the compiler aliases all of it
  with the result.
- **arguments**: weights, pool and batch as the compiler counts them, and in brackets by how much the
  planner's arithmetic misses it.
- **temporaries**, **code**: what else the step takes; temporaries also as a share of the device's memory.
- **HBM**: bytes that one step moves to and from HBM, read from the compiled program (`sharding/traffic.py`)
  with the attention kernel's own cost estimate, in the greedy case; then as a multiple of weights and
  live KV read once. In a prefill chunk, activations come on top.
- **transfers**: between devices, in a greedy step; those that only steps with sampling make are in brackets.
- **seconds**: of compilation.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", action="append", choices=TOPOLOGIES, help="default: all five")
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all eight")
    parser.add_argument("--json", type=Path, default=ROOT / "docs/tpu-matrix.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/tpu-matrix.md")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for model, topology in product(arguments.model or MODELS, arguments.topology or TOPOLOGIES):
        key = f"{model} {topology}"
        if key not in found:
            started = time.monotonic()
            found[key] = compile_pair(model, topology)
            print(f"{key}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            arguments.json.write_text(as_json(found))
            arguments.page.write_text(page(found))
    arguments.page.write_text(page(found))
    missed = [each for key in found for each in misses(key, found[key])]
    print("\n".join(missed) or "every figure is within its bound")
    return len(missed) > 0


def as_json(found: dict[str, Any]) -> str:
    """One line a pair."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(found[key])}" for key in found) + "\n}\n"


def compile_pair(model: str, topology: str) -> dict[str, Any]:
    """The plan of one pair as plain values, every step compiled; {"why": ...} when it does not fit."""

    def options(context: int, tensor: int | None) -> PlanOptions:
        return PlanOptions(
            model_path=model, topology=topology, tp_size=tensor, context_length=context, rows=ROWS
        )

    try:
        for context in CONTEXTS:
            layouts = make_plan(PlanOptions(**{**asdict(options(context, None)), "compile": False})).layouts
            widest = max(layouts, key=lambda each: each.tensor)
            if widest.requests[context] >= max(ROWS):
                break
        return asdict(make_plan(options(context, widest.tensor), chosen=lambda step: True))
    except ConfigError as error:
        return {"why": str(error)}


def misses(key: str, plan: dict[str, Any]) -> list[str]:
    """What of a pair is out of bounds."""
    if "why" in plan:
        return []
    layout = plan["layouts"][0]
    planned = layout["weight_bytes"] + layout["pool_bytes"]
    missed = []
    for step in layout["steps"]:
        name, compiled = f"{key}: {step['kind']} {step['tokens']}", step["compiled"]
        if not compiled["pool_aliased"]:
            missed.append(f"{name}: the pool is copied")
        if (share := compiled["temp_bytes"] / plan["hbm_bytes"]) > TEMPORARIES:
            missed.append(f"{name}: temporaries are {share:.1%} of the device's memory")
        if abs(planned / compiled["argument_bytes"] - 1) > ARITHMETIC:
            missed.append(
                f"{name}: arguments take {compiled['argument_bytes']} bytes, planned were {planned}"
            )
        if step["kind"] == "decode" and (ratio := compiled["hbm_bytes"] / step["hbm_bytes"]) > TRAFFIC:
            missed.append(f"{name}: moves {ratio:.3f} times weights and live KV")
    return missed


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    lines = [PAGE.format(fraction=0.9, summary="\n".join(summary(found)))]
    refused = {key: plan["why"] for key, plan in found.items() if "why" in plan}
    for topology in dict.fromkeys(key.split()[1] for key in found):
        plans = [plan for key, plan in found.items() if key.split()[1] == topology and key not in refused]
        if plans:
            one = plans[0]
            lines.append(f"### {topology}: {one['devices']} devices of {one['chip']}\n")
            lines.append("| " + " | ".join(COLUMNS) + " |")
            lines.append("|---" * len(COLUMNS) + "|")
            lines += [row(plan, step) for plan in plans for step in plan["layouts"][0]["steps"]]
            lines.append("")
    if refused:
        lines.append("## What does not fit\n")
        lines += [f"- {why}" for why in refused.values()]
        lines.append("")
    missed = [each for key in found for each in misses(key, found[key])]
    lines.append("## Out of bounds\n")
    lines += [f"- {each}" for each in missed] or ["Nothing."]
    return "\n".join(lines) + "\n"


def summary(found: dict[str, Any]) -> list[str]:
    """A line for each pair, those of one slice together."""
    lines = ["| " + " | ".join(SUMMARY) + " |", "|---" * len(SUMMARY) + "|"]
    for topology, model in product(TOPOLOGIES, MODELS):
        if (plan := found.get(f"{model} {topology}")) is None:
            cells = ["not tried yet", "", "", "", ""]
        elif "why" in plan:
            cells = ["does not fit", "", "", "", ""]
        else:
            layout = plan["layouts"][0]
            compiled = [step["compiled"] for step in layout["steps"]]
            used = max(each["argument_bytes"] + each["temp_bytes"] + each["code_bytes"] for each in compiled)
            ratio = max(
                step["compiled"]["hbm_bytes"] / step["hbm_bytes"]
                for step in layout["steps"] if step["kind"] == "decode"
            )  # fmt: skip
            cells = [
                f"{len(compiled)} steps",
                f"{used / 2**30:.2f} GiB, {used / plan['hbm_bytes']:.1%}",
                f"{layout['pool_tokens']:,}",
                f"{sum(each['compile_seconds'] for each in compiled):.0f}",
                f"{ratio:.3f}",
            ]
        lines.append(f"| {model} | {topology} | {' | '.join(cells)} |")
    return lines


def row(plan: dict[str, Any], step: dict[str, Any]) -> str:
    """One step as a line of the table."""
    layout, compiled = plan["layouts"][0], step["compiled"]
    planned = layout["weight_bytes"] + layout["pool_bytes"]
    if step["kind"] == "decode":
        name = f"decode {step['rows']} at {step['context']:,}"
    else:
        name = f"prefill {step['tokens']:,}"
    transfers = [
        f"{each['count']} {each['kind']} of {each['bytes']:,} B" if each["always"] else
        f"({each['count']} {each['kind']} of {each['bytes']:,} B)"
        for each in compiled["transfers"]
    ]  # fmt: skip
    cells = (
        f"{plan['model']}, tensor={layout['tensor']}",
        f"{layout['pool_tokens']:,}",
        name,
        f"{compiled['argument_bytes'] / 2**30:.2f} GiB ({planned / compiled['argument_bytes'] - 1:+.2%})",
        f"{compiled['temp_bytes'] / 2**20:.1f} MiB, {compiled['temp_bytes'] / plan['hbm_bytes']:.2%}",
        f"{compiled['code_bytes'] / 2**20:.1f} MiB",
        "yes" if compiled["pool_aliased"] else "NO",
        f"{compiled['hbm_bytes'] / 1e9:.2f} GB, {compiled['hbm_bytes'] / step['hbm_bytes']:.3f}",
        ", ".join(transfers) or "none",
        f"{compiled['compile_seconds']:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
