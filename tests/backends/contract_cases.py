"""Runners that are held to the contract, each with an oracle of its own: to add one, add to `RUNNERS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.backends.registry import create_runner, describe_model
from radixmesh.backends.torch_cuda.chunk_graphs import ChunkGraphs
from radixmesh.backends.torch_cuda.runner import TorchRunner
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.runner import ModelRunner, RunnerCapacity
from tests.oracle import oracle_logits
from tests.tiny_models import save_tiny_model


@dataclass(frozen=True)
class Case:
    """A runner under test, warmed up. It needs 32 pages, 4 rows, 32 tokens a step and 64 page table entries.

    `oracle(prompt, count, seed)` gives its tokens without it, for the `seeds` that it knows (None is greedy);
    `scores(tokens)` how likely each id comes next, and `logprobs(tokens)` with which log probability.
    """

    create: Callable[[], ModelRunner]
    vocab_size: int
    oracle: Callable[[Sequence[int], int, int | None], list[int]]
    scores: Callable[[Sequence[int]], np.ndarray]
    logprobs: Callable[[Sequence[int]], np.ndarray]
    seeds: tuple[int | None, ...] = (None,)


def fake_case() -> Case:
    def oracle(prompt: Sequence[int], count: int, seed: int | None) -> list[int]:
        return expected_tokens(prompt, count, 997, seed=seed)

    def scores(tokens: Sequence[int]) -> np.ndarray:
        return -((np.arange(997) - oracle(tokens, 1, None)[0]) % 997)

    runner = partial(FakeRunner, RunnerCapacity(48, 8, 6, 64, 96), 997)
    return Case(runner, 997, oracle, scores, lambda tokens: scores(tokens) - 0.5, (None, 5))


def tiny_case(name: str, backend: Literal["jax", "torch"], tp_size: int = 1, dp_size: int = 1) -> Case:
    """A tiny random model in float32; its oracle is transformers without a cache."""
    folder = TemporaryDirectory()
    model = save_tiny_model(name, Path(folder.name))

    def create() -> ModelRunner:
        config = EngineConfig(
            model_path=folder.name, backend=backend, dtype="float32", page_size=8, max_total_tokens=48 * 8,
            max_running_requests=6, chunked_prefill_size=32, tp_size=tp_size, dp_size=dp_size,
        )  # fmt: skip
        with folder:
            return create_runner(config, describe_model(config))

    def oracle(prompt: Sequence[int], count: int, seed: int | None) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(oracle_logits(model, tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def scores(tokens: Sequence[int]) -> np.ndarray:
        return oracle_logits(model, list(tokens))[-1]

    def logprobs(tokens: Sequence[int]) -> np.ndarray:
        logits = scores(tokens).astype(np.float64)
        return logits - np.log(np.exp(logits).sum())

    return Case(create, 160, oracle, scores, logprobs)


def in_pieces(case: Case) -> Case:
    """The torch runner as on a GPU, but for the capture: what is between attentions has padded tokens."""

    def create() -> ModelRunner:
        runner = case.create()
        assert isinstance(runner, TorchRunner) and runner._step is not None
        runner._chunks = ChunkGraphs(runner._step, runner.capacity, runner._device)
        return runner

    return replace(case, create=create)


RUNNERS: dict[str, Callable[[], Case]] = {
    "fake": fake_case,
    "jax": lambda: tiny_case("gemma3", "jax"),
    "jax, two groups of two devices": lambda: tiny_case("qwen3", "jax", tp_size=2, dp_size=2),
    "torch": lambda: tiny_case("gemma3", "torch"),
    "torch, in pieces": lambda: in_pieces(tiny_case("gemma3", "torch")),
    "torch, in pieces, biased": lambda: in_pieces(tiny_case("llama-biased", "torch")),
    "torch, two ranks": lambda: tiny_case("qwen3", "torch", tp_size=2),
}
