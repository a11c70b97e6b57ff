"""Measure a running server: throughput, time to first token, time between tokens, end-to-end latency.

Any OpenAI-compatible server will do, ours or a peer's. Requests are sent at --request-rate, at most
--max-concurrency at a time; in a multi-turn workload each turn waits for the answer before it.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ...config import option
from ...errors import ConfigError
from ..joints import Joints
from ..options import add_options, read_options
from .clients import Protocol, Target, as_history, as_messages, check_unit, send
from .datasets import Conversation, DatasetOptions, Turn, draw_conversations, join
from .http_client import HttpError, check_url, fetch_json
from .report import RequestRecord, print_report, summarize, to_json, write_json

DEFAULT_VOCAB_SIZE = 30000  # few models have fewer tokens


@dataclass(frozen=True, kw_only=True)
class ServeBenchOptions:
    """How a server is driven."""

    base_url: str = option("http://127.0.0.1:30000", "the server's address, without /v1")
    backend: Protocol = option(
        "openai", "what to ask it: openai (completions), openai-chat, or sglang (/generate)"
    )
    model: str | None = option(None, "model name to send; default: the first that /v1/models lists")
    api_key: str | None = option(None, "sent as a bearer token (default: none)")
    prompt_format: Literal["auto", "ids", "words"] = option(
        "auto", "what prompts are made of; auto is token ids where the protocol takes them"
    )
    request_rate: float = option(math.inf, "requests a second, at random moments (Poisson); inf: all at once")
    max_concurrency: int | None = option(None, "requests open at a time (default: no bound)")
    num_warmups: int = option(1, "requests sent before measuring begins")
    flush_cache: bool = option(False, "empty the server's prefix cache after the warm-up")
    ignore_eos: bool = option(False, "have every answer reach its full length")
    temperature: float = option(0.0, "sampling temperature; 0 is greedy")
    extra_body: str | None = option(None, "JSON object merged into every request's body (default: none)")
    json: str | None = option(None, "file for the figures (default: none)")

    def __post_init__(self) -> None:
        check_url(self.base_url)
        if not self.request_rate > 0:
            raise ConfigError(f"request_rate is {self.request_rate}; accepted is a number above 0, or inf")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigError(
                f"max_concurrency is {self.max_concurrency}; accepted is an integer of at least 1"
            )
        if self.num_warmups < 0:
            raise ConfigError(f"num_warmups is {self.num_warmups}; accepted is an integer of at least 0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_options(parser, ServeBenchOptions)
    add_options(parser, DatasetOptions)


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Run the benchmark, print its report; 1 when no request succeeded."""
    options = ServeBenchOptions(**read_options(arguments, ServeBenchOptions))
    dataset = DatasetOptions(**read_options(arguments, DatasetOptions))
    try:
        records, duration = asyncio.run(measure(options, dataset))
    except HttpError as error:
        raise ConfigError(f"base_url is {options.base_url!r}: {error}") from error
    report = summarize(records, duration)
    print_report("Serving Benchmark Result", report)
    told = {**dataclasses.asdict(dataset), **dataclasses.asdict(options), "api_key": None}
    write_json(
        options.json, {**to_json(report), "options": {**told, "request_rate": str(options.request_rate)}}
    )
    return 0 if report.completed else 1


async def measure(options: ServeBenchOptions, dataset: DatasetOptions) -> tuple[list[RequestRecord], float]:
    """Warm up, then play the workload. Returns a record for each turn, and the seconds it all took."""
    unit = check_unit(options.backend, options.prompt_format, dataset.dataset_name == "multi-turn")
    target = await find_target(options)
    vocab_size = dataset.vocab_size or DEFAULT_VOCAB_SIZE
    conversations = draw_conversations(dataset, unit, vocab_size)
    if options.num_warmups:
        # Drawn from another seed, so that the cache holds nothing of what is measured.
        other = draw_conversations(replace(dataset, seed=dataset.seed + 1), unit, vocab_size)
        records, _ = await play(target, other[: options.num_warmups], math.inf, None, dataset.seed)
        failed = [each.error for each in records if each.error]
        if failed:
            raise HttpError(f"a warm-up request failed: {failed[0]}")
    if options.flush_cache:
        await fetch_json("POST", f"{target.base_url}/flush_cache", api_key=target.api_key)
    return await play(target, conversations, options.request_rate, options.max_concurrency, dataset.seed)


async def find_target(options: ServeBenchOptions) -> Target:
    """The server with the model's name, asked for unless it was given. Raises HttpError, ConfigError."""
    url = check_url(options.base_url)
    model = options.model
    if model is None and options.backend != "sglang":
        models = await fetch_json("GET", f"{url}/v1/models", api_key=options.api_key)
        try:
            model = models["data"][0]["id"]
        except (KeyError, IndexError, TypeError):
            raise HttpError("/v1/models lists no model; give its name with --model") from None
    try:
        extra = json.loads(options.extra_body or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise ConfigError(f"extra_body is {options.extra_body!r}; accepted is a JSON object")
    return Target(
        base_url=url,
        protocol=options.backend,
        model=model or "",
        ignore_eos=options.ignore_eos,
        temperature=options.temperature,
        api_key=options.api_key,
        extra_body=extra,
    )


async def play(
    target: Target,
    conversations: Sequence[Conversation],
    request_rate: float,
    max_concurrency: int | None,
    seed: int,
) -> tuple[list[RequestRecord], float]:
    """Hold all conversations, each begun at its moment. Returns the records and the seconds it took."""
    gate = asyncio.Semaphore(max_concurrency or max(1, len(conversations)))
    begin = time.perf_counter()
    moments = start_times(len(conversations), request_rate, seed)

    async def hold(conversation: Conversation, moment: float) -> list[RequestRecord]:
        await asyncio.sleep(max(0.0, begin + moment - time.perf_counter()))
        async with gate:
            return await _converse(target, conversation)

    held = await asyncio.gather(*map(hold, conversations, moments))
    return [record for records in held for record in records], time.perf_counter() - begin


def start_times(number: int, request_rate: float, seed: int) -> list[float]:
    """Seconds from the beginning at which each conversation starts: a Poisson process, or all at once."""
    if math.isinf(request_rate):
        return [0.0] * number
    gaps = np.random.default_rng(seed).exponential(1 / request_rate, number)
    return [float(each) for each in np.cumsum(gaps) - gaps[:1]]


async def _converse(target: Target, conversation: Conversation) -> list[RequestRecord]:
    """Play the turns one after another; a failed one ends the conversation."""
    records: list[RequestRecord] = []
    prompt = None
    for turn in conversation.turns:
        added = as_messages(turn.content) if target.protocol == "openai-chat" else turn.content
        prompt = added if prompt is None else join(as_history(target, prompt, records[-1]), added)
        records.append(await send(target, Turn(prompt, turn.output_len)))
        if records[-1].error is not None:
            break
    return records
