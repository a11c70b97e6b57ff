"""Host microseconds per step: the scheduler and the cache, driven with the fake runner.

    python benchmarks/host_overhead.py [--rows 64 256 1024] [--steps 300] [--json]

Two loads: `decode`, where all rows decode and nothing arrives, and `mixed`, where each request that ends is
replaced by one with a shared prefix. Counted is the thread's CPU time; the runner answers at once. Phases:

    schedule   choosing rows, pages and chunks, admitting requests, inserting into the tree
    build      turning the plan into the arrays of a ScheduleBatch
    process    taking in sampled tokens, stop checks, releasing what finished
    other      the loop around them
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from radixmesh.backends.fake.runner import FakePending, FakeRunner
from radixmesh.engine import scheduler as scheduler_module
from radixmesh.engine.batch import ScheduleBatch, StepTokens
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, RunnerCapacity
from radixmesh.engine.startup import calm_garbage_collection

VOCAB = 32_000
PAGE_SIZE = 16


class Clock:
    """Times wrapped functions: `samples[name]` holds the CPU microseconds of each call."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        samples = self.samples[name] = []

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                samples.append((time.thread_time() - begin) * 1e6)

        return timed


class InstantRunner(FakeRunner):
    """Tokens out of nothing: only the host's own work is left to measure."""

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> FakePending:
        (batch,) = batches
        assert batch is not None
        pending = FakePending(self, batch, 0.0)
        pending.tokens = StepTokens((batch.sampling.indices * 7) % VOCAB)
        return pending


def make_engine(rows: int, tokens_per_request: int) -> Engine:
    pages = rows * (tokens_per_request // PAGE_SIZE + 2) * 5 // 4
    capacity = RunnerCapacity(
        num_pages=pages,
        page_size=PAGE_SIZE,
        max_running_requests=rows,
        max_step_tokens=rows + 512,
        max_page_indices=4 * pages,
    )
    info = ModelInfo("fake", "", VOCAB, 8192, frozenset({2}))
    return Engine(EngineConfig(max_queued_requests=10 * rows), info, InstantRunner(capacity, VOCAB))


def make_request(name: int, prompt: list[int], max_new: int) -> Request:
    params = SamplingParams(max_new_tokens=max_new, temperature=0.7, top_p=0.9)
    return Request(str(name), np.array(prompt, np.int32), params, seed=name)


def measure(load: str, rows: int, steps: int) -> dict[str, float | int | str]:
    """Median microseconds over `steps` steps, and of whole steps the mean and p99."""
    rng = random.Random(0)
    stems = [[rng.randrange(VOCAB) for _ in range(192)] for _ in range(8)]
    names = iter(range(10**9))

    def arrive() -> None:
        prompt = rng.choice(stems) + [rng.randrange(VOCAB) for _ in range(rng.randrange(8, 128))]
        length = 10**6 if load == "decode" else rng.randrange(32, 128)
        engine.add_request(make_request(next(names), prompt, min(length, steps + 400)))

    engine = make_engine(rows, 320 + (steps + 400 if load == "decode" else 128))
    for _ in range(rows):
        arrive()
    for _ in range(200):  # until all run, and in a mixed load the ends are spread
        for output in engine.step():
            if output.finish_reason:
                arrive()

    clock = Clock()
    original = scheduler_module.build_batch
    scheduler_module.build_batch = clock.wrap("build", original)
    engine.schedulers[0].schedule = clock.wrap("schedule", engine.schedulers[0].schedule)  # type: ignore[method-assign]
    engine.schedulers[0].process = clock.wrap("process", engine.schedulers[0].process)  # type: ignore[method-assign]
    step = clock.wrap("step", engine.step)
    tokens = engine.schedulers[0].counters.scheduled_tokens
    for _ in range(steps):
        for output in step():
            if output.finish_reason:
                arrive()
    scheduler_module.build_batch = original

    # medians, so that whatever else the machine does is left out
    median = {name: statistics.median(samples) for name, samples in clock.samples.items()}
    return {
        "load": load,
        "rows": rows,
        "tokens_per_step": round((engine.schedulers[0].counters.scheduled_tokens - tokens) / steps, 1),
        "step_us": round(median["step"], 1),
        "schedule_us": round(median["schedule"] - median["build"], 1),
        "build_us": round(median["build"], 1),
        "process_us": round(median["process"], 1),
        "other_us": round(median["step"] - median["schedule"] - median["process"], 1),
        "step_mean_us": round(statistics.fmean(clock.samples["step"]), 1),
        "step_p99_us": round(float(np.percentile(clock.samples["step"], 99)), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 1024], help="running requests")
    parser.add_argument("--steps", type=int, default=300, help="steps to measure")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    args = parser.parse_args()
    calm_garbage_collection()
    for load in ("decode", "mixed"):
        for rows in args.rows:
            result = measure(load, rows, args.steps)
            if args.json:
                print(json.dumps(result))
            else:
                print("  ".join(f"{name} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
