"""A plan as a picture: new tokens a second against the time between a request's tokens, a line a layout."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_plot(path: Path) -> None:
    """Raise ConfigError, before a plan is made, if its picture could not be written to `path`."""
    if path.suffix != ".png":
        raise ConfigError(f"plot is {str(path)!r}; accepted is a file name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"plot is {str(path)!r}; accepted is a file in a folder that exists")
    if find_spec("matplotlib") is None:
        raise ConfigError("plot needs matplotlib: pip install 'radixmesh[plot]'")


def draw(plan: Plan) -> Figure:
    """The decode steps of every layout that fits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for layout in plan.layouts:
        steps = [step for step in layout.steps if step.kind == "decode"]
        fast = [(step.seconds * 1e3, step.tokens_a_second) for step in steps]
        slow = [(step.slow_seconds * 1e3, step.rows / step.slow_seconds) for step in steps]
        name = f"data={layout.data}, tensor={layout.tensor}"
        (line,) = axes.plot(*zip(*fast, strict=True), "o-", label=name)
        axes.plot(*zip(*slow, strict=True), "o--", color=line.get_color(), alpha=0.5)
        for step, at in zip(steps, fast, strict=True):
            axes.annotate(str(step.rows), at, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set_xlabel("time between tokens of a request, ms")
    axes.set_ylabel("new tokens a second, all requests")
    axes.set_title(
        f"{plan.model} on {plan.topology}, {plan.context_length:,} tokens a request: estimates\n"
        "solid at the chip's peaks, dashed at 60% of bandwidth and 40% of peak; numbers are requests",
        fontsize=9,
    )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
