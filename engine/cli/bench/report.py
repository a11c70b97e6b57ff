"""What a benchmark measured, under the names that SGLang's and vLLM's benchmarks use.

Of one request: TTFT is the time to its first token, E2E latency the time to its last, ITL the time
between two arrivals, TPOT the mean time per token after the first. Times are in seconds until they
are reported, then in milliseconds.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from ...errors import ConfigError


@dataclass(kw_only=True)
class RequestRecord:
    """One request as its client saw it. Times on one clock, in seconds."""

    start: float
    arrivals: list[float] = field(default_factory=list)  # when each piece of the answer came
    arrived_tokens: list[int] = field(default_factory=list)  # tokens in each piece
    end: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)

    @property
    def output_tokens(self) -> int:
        return sum(self.arrived_tokens)

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.start

    @property
    def latency(self) -> float:
        """Seconds from sending the request to its end."""
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token after the first; None for a single token."""
        after = self.output_tokens - self.arrived_tokens[0]
        return (self.arrivals[-1] - self.arrivals[0]) / after if after else None


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A distribution of times, in milliseconds."""

    mean: float
    median: float
    std: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The figures of one run. Throughput in tokens or requests per second, durations in seconds."""

    completed: int
    failed: int
    duration: float
    total_input_tokens: int
    total_cached_tokens: int
    total_output_tokens: int
    request_throughput: float
    input_throughput: float
    output_throughput: float
    total_token_throughput: float
    peak_output_throughput: float | None = None
    peak_concurrent_requests: int | None = None
    concurrency: float | None = None
    ttft: Latency | None = None
    tpot: Latency | None = None
    itl: Latency | None = None
    e2e_latency: Latency | None = None
    errors: tuple[str, ...] = ()  # each different message once


def totals(
    *,
    completed: int,
    duration: float,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int = 0,
    failed: int = 0,
) -> Report:
    """A report of throughput alone, for runs whose requests were not timed one by one."""
    duration = max(duration, 1e-9)
    return Report(
        completed=completed,
        failed=failed,
        duration=duration,
        total_input_tokens=input_tokens,
        total_cached_tokens=cached_tokens,
        total_output_tokens=output_tokens,
        request_throughput=completed / duration,
        input_throughput=input_tokens / duration,
        output_throughput=output_tokens / duration,
        total_token_throughput=(input_tokens + output_tokens) / duration,
    )


def summarize(records: Sequence[RequestRecord], duration: float) -> Report:
    """The report of timed requests. Failed ones count in `failed` and nowhere else."""
    good = [each for each in records if each.error is None and each.arrivals]
    failed = [each for each in records if each.error is not None or not each.arrivals]
    report = totals(
        completed=len(good),
        failed=len(failed),
        duration=duration,
        input_tokens=sum(each.prompt_tokens for each in good),
        output_tokens=sum(each.output_tokens for each in good),
        cached_tokens=sum(each.cached_tokens for each in good),
    )
    gaps = [gap for each in good for gap in np.diff(each.arrivals)]
    return dataclasses.replace(
        report,
        peak_output_throughput=_peak_throughput(good),
        peak_concurrent_requests=_peak_concurrency(good),
        concurrency=sum(each.latency for each in good) / report.duration,
        ttft=_latency([each.ttft for each in good]),
        tpot=_latency([each.tpot for each in good if each.tpot is not None]),
        itl=_latency(gaps),
        e2e_latency=_latency([each.latency for each in good]),
        errors=tuple(dict.fromkeys(each.error or "no token came back" for each in failed)),
    )


def _latency(seconds: Sequence[float]) -> Latency | None:
    if not len(seconds):
        return None
    ms = np.asarray(seconds, dtype=np.float64) * 1000
    return Latency(
        mean=float(ms.mean()),
        median=float(np.median(ms)),
        std=float(ms.std()),
        p99=float(np.percentile(ms, 99)),
    )


def _peak_throughput(records: Sequence[RequestRecord]) -> float | None:
    """Most output tokens in any whole second since the first request was sent."""
    if not records:
        return None
    times = np.concatenate([each.arrivals for each in records])
    tokens = np.concatenate([each.arrived_tokens for each in records])
    seconds = (times - min(each.start for each in records)).astype(np.int64)
    return float(np.bincount(seconds, weights=tokens).max())


def _peak_concurrency(records: Sequence[RequestRecord]) -> int | None:
    """Most requests open at one moment."""
    changes = sorted([(each.start, 1) for each in records] + [(each.end, -1) for each in records])
    return int(np.cumsum([change for _, change in changes]).max()) if changes else None


_LINES = (
    ("Successful requests", "completed"),
    ("Failed requests", "failed"),
    ("Benchmark duration (s)", "duration"),
    ("Total input tokens", "total_input_tokens"),
    ("Total cached tokens", "total_cached_tokens"),
    ("Total generated tokens", "total_output_tokens"),
    ("Request throughput (req/s)", "request_throughput"),
    ("Input token throughput (tok/s)", "input_throughput"),
    ("Output token throughput (tok/s)", "output_throughput"),
    ("Peak output token throughput (tok/s)", "peak_output_throughput"),
    ("Total token throughput (tok/s)", "total_token_throughput"),
    ("Peak concurrent requests", "peak_concurrent_requests"),
    ("Concurrency", "concurrency"),
)
_LATENCIES = (
    ("Time to First Token", "TTFT", "ttft"),
    ("Time per Output Token (excl. 1st token)", "TPOT", "tpot"),
    ("Inter-token Latency", "ITL", "itl"),
    ("End-to-end Latency", "E2E Latency", "e2e_latency"),
)


def print_report(title: str, report: Report, out: TextIO | None = None) -> None:
    """Print the figures in the shape of the peers' benchmarks; those not measured are left out."""
    out = out or sys.stdout
    print(f" {title} ".center(60, "="), file=out)
    for label, name in _LINES:
        value = getattr(report, name)
        if value is not None:
            print(f"{label + ':':<44}{_shown(value):>16}", file=out)
    for label, short, name in _LATENCIES:
        latency: Latency | None = getattr(report, name)
        if latency is not None:
            print(label.center(60, "-"), file=out)
            for kind in ("mean", "median", "p99"):
                line = f"{kind.capitalize()} {short} (ms):"
                print(f"{line:<44}{_shown(getattr(latency, kind)):>16}", file=out)
    print("=" * 60, file=out)
    for error in report.errors:
        print(f"failed: {error}", file=out)


def to_json(report: Report) -> dict[str, object]:
    """The figures by the peers' names: `output_throughput`, `mean_ttft_ms`, `p99_itl_ms`, ..."""
    values = dataclasses.asdict(report)
    for _, _, name in _LATENCIES:
        for kind, value in (values.pop(name) or {}).items():
            values[f"{kind}_{name}_ms"] = value
    return values


def write_json(path: str | None, values: dict[str, object]) -> None:
    """Write figures and the options that led to them to `path`, if one was given."""
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"json is {path!r}, which cannot be written: {error.strerror}") from error


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"
