"""Measure one batch: how long its prefill takes, and each decode step after it.

All prompts of the batch begin together and are of one length; each run draws new ones, so that the
prefix cache holds nothing of them.
"""

import argparse
import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import Any

from ...config import EngineConfig, option
from ...errors import ConfigError
from ...llm import LLM
from ...request import SamplingParams
from ..joints import Joints
from ..options import add_options, read_options
from .datasets import DatasetOptions, draw_conversations
from .report import write_json


@dataclass(frozen=True, kw_only=True)
class LatencyBenchOptions:
    """The batch, and how often it is run."""

    batch_size: int = option(8, "prompts in the batch")
    input_len: int = option(256, "tokens in a prompt")
    output_len: int = option(32, "tokens to generate for each, at least 2")
    num_iters: int = option(5, "runs that are measured")
    num_warmups: int = option(1, "runs before them that are not")
    seed: int = option(1, "seed of the prompts")
    json: str | None = option(None, "file for the figures (default: none)")

    def __post_init__(self) -> None:
        for name, low in (
            ("batch_size", 1), ("input_len", 1), ("output_len", 2), ("num_iters", 1), ("num_warmups", 0),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; accepted is an integer of at least {low}"
                )


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """Medians over the runs. Latency in seconds, throughput in tokens per second of the whole batch."""

    prefill_latency: float
    prefill_throughput: float
    decode_latency: float  # of one step
    decode_throughput: float
    total_latency: float
    total_throughput: float  # prompt and output tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_options(parser, LatencyBenchOptions)
    add_options(parser, EngineConfig)


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Run the benchmark and print its report."""
    options = LatencyBenchOptions(**read_options(arguments, LatencyBenchOptions))
    config = EngineConfig(**read_options(arguments, EngineConfig))
    with LLM(config, joints.find_backend(config)) as llm:
        report = measure(llm, options)
    print(" Latency Benchmark Result ".center(60, "="))
    _line("Prefill", report.prefill_latency, report.prefill_throughput)
    _line("Decode, one step", report.decode_latency, report.decode_throughput)
    _line("Total", report.total_latency, report.total_throughput)
    print("=" * 60)
    told = {**dataclasses.asdict(config), **dataclasses.asdict(options)}
    write_json(options.json, {**dataclasses.asdict(report), "options": told})
    return 0


def measure(llm: LLM, options: LatencyBenchOptions) -> LatencyReport:
    """Run the batch several times. Raises ConfigError when it does not fit into the engine at once."""
    capacity = llm.capacity
    rows = capacity.num_groups * capacity.max_running_requests
    room = capacity.num_groups * capacity.num_pages * capacity.page_size
    tokens = options.batch_size * (options.input_len + options.output_len)
    if options.batch_size > rows or tokens > room:
        raise ConfigError(
            f"batch_size is {options.batch_size} with {tokens} tokens in all; the engine runs at most {rows}"
            f" requests and {room} tokens at once"
        )
    runs = options.num_warmups + options.num_iters
    times = [_time_run(llm, options, options.seed + number) for number in range(runs)]
    measured = times[options.num_warmups :]
    return summarize(measured, options)


def _time_run(llm: LLM, options: LatencyBenchOptions, seed: int) -> tuple[float, float]:
    """(seconds for prompts and one token each, seconds for all tokens), on different prompts."""
    shortest = _time_batch(llm, options, 1, 2 * seed)
    return shortest, _time_batch(llm, options, options.output_len, 2 * seed + 1)


def _time_batch(llm: LLM, options: LatencyBenchOptions, output_len: int, seed: int) -> float:
    dataset = DatasetOptions(num_prompts=options.batch_size, random_input_len=options.input_len, seed=seed)
    drawn = draw_conversations(dataset, "ids", llm.info.vocab_size)
    prompts: Any = [each.turns[0].content for each in drawn]
    params = SamplingParams(max_new_tokens=output_len, temperature=0.0, ignore_eos=True)
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - begin


def summarize(times: list[tuple[float, float]], options: LatencyBenchOptions) -> LatencyReport:
    """The report of runs given as (seconds with one output token, seconds with all)."""
    steps = options.output_len - 1
    prefill = statistics.median(short for short, _ in times)
    total = statistics.median(whole for _, whole in times)
    # What runs of one token and runs of all have in common is the prefill. Noise must not make it negative.
    decode = max(statistics.median((whole - short) / steps for short, whole in times), 1e-9)
    size = options.batch_size
    return LatencyReport(
        prefill_latency=prefill,
        prefill_throughput=size * options.input_len / prefill,
        decode_latency=decode,
        decode_throughput=size / decode,
        total_latency=total,
        total_throughput=size * (options.input_len + options.output_len) / total,
    )


def _line(title: str, latency: float, throughput: float) -> None:
    print(f"{title + '.':<18} median latency: {latency:9.5f} s, throughput: {throughput:10.2f} token/s")
