"""Tell how a model would lie on a TPU slice that need not be here: what fits, and how fast it can be.

Memory, capacity in tokens and requests, transfers between devices, and the time of decode steps and
prefill chunks. Without --mesh, every layout that makes sense, the fastest first. All times are estimates.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ..plan import LayoutPlan, Plan, PlanOptions, StepPlan
from .joints import Joints
from .options import add_options, read_options
from .plan_plot import check_plot, draw


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="also draw throughput against latency, a line a layout"
    )
    add_options(parser, PlanOptions, unset="as serve chooses")


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Make the plan and print it."""
    if arguments.plot:
        check_plot(arguments.plot)
    plan = joints.plan(PlanOptions(**read_options(arguments, PlanOptions)))
    if arguments.plot:
        draw(plan).savefig(arguments.plot, dpi=150)
    if arguments.json:
        print(json.dumps(asdict(plan), indent=2))
    else:
        print_plan(plan)
    return 0


def print_plan(plan: Plan) -> None:
    """Print the plan for a person."""
    rates = f"{plan.bandwidth / 1e9:.0f} GB/s and {plan.peak_flops / 1e12:.0f} TFLOP/s"
    each = f"each with {_size(plan.hbm_bytes)} at {rates}"
    print(f"{plan.model} on {plan.topology}: {plan.devices} devices of {plan.chip}, {each}")
    for choice in plan.choices:
        print(f"  {choice.name}={choice.value} because {choice.reason}")
    for rank, layout in enumerate(plan.layouts, 1):
        print(f"\n{rank}. data={layout.data}, tensor={layout.tensor}" if len(plan.layouts) > 1 else "")
        _print_layout(layout)
    for layout in plan.refused:
        print(f"\nDoes not fit: data={layout.data}, tensor={layout.tensor}: {layout.refusal}")
    print(
        "\nTimes are estimates: the slowest of reading HBM and multiplying at their peaks, and the transfers"
        " after it.\nThe second figure of a range has 60% of the bandwidth and 40% of the peak, which good"
        " engines reach."
    )


def _print_layout(layout: LayoutPlan) -> None:
    pool = f"{_size(layout.pool_bytes)} of KV pool at {layout.token_bytes:,} bytes a token"
    print(f"   a device: {_size(layout.weight_bytes)} of weights, {pool}")
    held = ", ".join(f"{count:,} of {length:,} tokens" for length, count in layout.requests.items())
    print(f"   in all {layout.pool_tokens:,} tokens: requests of one length that fit are {held}")
    rows = [
        ("step", "time", "bound by", "HBM", "multiply", "transfer", "tokens/s"),
        *(_cells(step) for step in layout.steps),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("   " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    prefill = layout.steps[-1]
    print(
        f"   time to first token of a prompt of {prefill.tokens:,} that meets no other:"
        f" {_ms(prefill.seconds)} to {_ms(prefill.slow_seconds)} ms"
    )
    for step in (layout.steps[-2], prefill):  # the decode step of the most rows, and the prefill
        print(f"   {_name(step)}: {_transfers(step)}{_compiled(step)}")


def _cells(step: StepPlan) -> tuple[str, ...]:
    slow = step.tokens_a_second * step.seconds / step.slow_seconds
    return (
        _name(step),
        f"{_ms(step.seconds)} to {_ms(step.slow_seconds)} ms",
        step.bound,
        f"{step.hbm_bytes / 1e9:.2f} GB, {_ms(step.memory_seconds)} ms",
        f"{step.flops / 1e12:.3g} TFLOP, {_ms(step.compute_seconds)} ms",
        f"{_ms(step.interconnect_seconds)} ms",
        f"{slow:,.0f} to {step.tokens_a_second:,.0f}",
    )


def _name(step: StepPlan) -> str:
    if step.kind == "decode":
        return f"decode of {step.rows} row{'s' * (step.rows > 1)} at {step.context:,}"
    return f"prefill of {step.tokens:,}" + (f" in {step.rows} groups" if step.rows > 1 else "")


def _transfers(step: StepPlan) -> str:
    found = step.compiled.transfers if step.compiled else step.transfers
    told = [
        f"{each.count} {each.kind} of {_size(each.bytes)} over {each.devices} devices"
        + ("" if each.always else " if rows sample")
        for each in found
    ]
    return ", ".join(told) or "no transfers between devices"


def _compiled(step: StepPlan) -> str:
    if (found := step.compiled) is None:
        return ""
    pool = "KV pool updated in place" if found.pool_aliased else "KV pool COPIED"
    return (
        f"; compiled in {found.compile_seconds:.1f} s: {_size(found.temp_bytes)} of temporaries,"
        f" {_size(found.code_bytes)} of code, {pool}; by what the compiler says that it moves"
        f" ({found.hbm_bytes / 1e9:.2f} GB of HBM, and the transfers) at least {_ms(found.seconds)} ms,"
        f" bound by {found.bound}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.3g} {unit}" if unit != "bytes" else f"{number:.0f} bytes"
        number /= 1024
    return f"{number:.2f} GiB"
