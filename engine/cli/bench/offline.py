"""Measure the throughput of the engine in this process: all prompts are given at once.

In a multi-turn workload the first turns of all conversations run together, then the second ones.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...config import EngineConfig, option
from ...errors import ConfigError
from ...llm import LLM
from ...outputs import RequestOutput
from ...request import SamplingParams
from ..generate import Entry, prompt_of
from ..joints import Joints
from ..options import add_options, read_options
from .datasets import Content, Conversation, DatasetOptions, draw_conversations, join
from .report import Report, print_report, to_json, totals, write_json


@dataclass(frozen=True, kw_only=True)
class OfflineBenchOptions:
    """How the engine is driven."""

    num_warmups: int = option(1, "prompts generated before measuring begins")
    flush_cache: bool = option(False, "empty the prefix cache after the warm-up")
    ignore_eos: bool = option(False, "have every answer reach its full length")
    temperature: float = option(0.0, "sampling temperature; 0 is greedy")
    json: str | None = option(None, "file for the figures (default: none)")

    def __post_init__(self) -> None:
        if self.num_warmups < 0:
            raise ConfigError(f"num_warmups is {self.num_warmups}; accepted is an integer of at least 0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_options(parser, OfflineBenchOptions)
    add_options(parser, DatasetOptions)
    add_options(parser, EngineConfig)


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Run the benchmark and print its report."""
    options = OfflineBenchOptions(**read_options(arguments, OfflineBenchOptions))
    dataset = DatasetOptions(**read_options(arguments, DatasetOptions))
    config = EngineConfig(**read_options(arguments, EngineConfig))
    llm = LLM(config, joints.find_backend(config))
    try:
        report = measure(llm, options, dataset)
    finally:
        llm.close()
    print_report("Offline Throughput Benchmark Result", report)
    told = {**dataclasses.asdict(config), **dataclasses.asdict(dataset), **dataclasses.asdict(options)}
    write_json(options.json, {**to_json(report), "options": told})
    return 0


def measure(llm: LLM, options: OfflineBenchOptions, dataset: DatasetOptions) -> Report:
    """Warm up, then generate the whole workload."""
    if options.num_warmups:
        other = draw_conversations(replace(dataset, seed=dataset.seed + 1), "ids", llm.info.vocab_size)
        _play(llm, other[: options.num_warmups], options)
    if options.flush_cache:
        llm.flush_cache()
    conversations = draw_conversations(dataset, "ids", llm.info.vocab_size)
    begin = time.perf_counter()
    outputs = _play(llm, conversations, options)
    return totals(
        completed=len(outputs),
        duration=time.perf_counter() - begin,
        input_tokens=sum(each.num_prompt_tokens for each in outputs),
        output_tokens=sum(len(each.token_ids) for each in outputs),
        cached_tokens=sum(each.num_cached_tokens for each in outputs),
    )


def _play(
    llm: LLM, conversations: Sequence[Conversation], options: OfflineBenchOptions
) -> list[RequestOutput]:
    """Hold all conversations, a turn of all at a time. Returns an output for each turn."""
    outputs: list[RequestOutput] = []
    history: list[Content] = [[] for _ in conversations]
    for number in range(max(len(each.turns) for each in conversations)):
        turns = [each.turns[number] for each in conversations]
        prompts: list[Any]
        if number:
            prompts = [join(before, turn.content) for before, turn in zip(history, turns, strict=True)]
        else:
            prompts = [_as_prompt(llm, turn.content) for turn in turns]
        params = [
            SamplingParams(
                max_new_tokens=turn.output_len,
                temperature=options.temperature,
                ignore_eos=options.ignore_eos,
            )
            for turn in turns
        ]
        answers = llm.generate(prompts, params, use_tqdm=False)
        outputs += answers
        if number + 1 < len(conversations[0].turns):  # only drawn workloads, of token ids, go on
            history = [join(each, answer.token_ids) for each, answer in zip(prompts, answers, strict=True)]
    return outputs


def _as_prompt(llm: LLM, content: Content) -> Any:
    """Text or token ids as they are; chat messages through the model's template."""
    if isinstance(content, str) or not content or isinstance(content[0], int):
        return content
    return prompt_of(Entry(messages=content), llm.tokenizer)
