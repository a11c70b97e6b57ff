"""Prompt logprobs of real runners, through scheduler and cache, against transformers in float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.outputs import TokenOutput
from radixmesh.engine.request import Request, SamplingParams, TokenLogprobs
from radixmesh.engine.startup import describe, start_engine
from tests.oracle import oracle_logits
from tests.tiny_models import save_tiny_model

TOP, ASKED = 4, (0, 77, 159)
TOLERANCE = 2e-4


def logprobs_after(model: Any, tokens: Sequence[int]) -> np.ndarray:
    """[tokens, vocab] after each of `tokens`."""
    logits = oracle_logits(model, list(tokens)).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def check(found: Sequence[TokenLogprobs], expected: np.ndarray, tokens: Sequence[int], top: int) -> None:
    """`found` of `tokens`, where the model says `expected` [tokens, vocab]."""
    assert len(found) == len(tokens)
    for each, row, token in zip(found, expected, tokens, strict=True):
        assert each.logprob == pytest.approx(row[token], abs=TOLERANCE)
        np.testing.assert_allclose(each.top_logprobs, np.sort(row)[: -top - 1 : -1], atol=TOLERANCE)
        np.testing.assert_allclose(row[each.top_ids], each.top_logprobs, atol=TOLERANCE)
        np.testing.assert_allclose(each.asked, row[list(ASKED)], atol=TOLERANCE)


class Turn:
    """Requests that are served together, and what came of them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[str, list[int]] = {}
        self.found: dict[str, list[TokenLogprobs]] = {}
        self.sampled: dict[str, list[TokenLogprobs]] = {}

    def add(self, name: str, prompt: Sequence[int], **params: Any) -> None:
        self.tokens[name], self.sampled[name] = [], []
        given = SamplingParams(temperature=0, ignore_eos=True, **params)
        self.engine.add_request(Request(id=name, prompt_ids=np.array(prompt, np.int32), params=given))

    def run(self) -> None:
        while self.engine.has_work:
            self.step()

    def step(self) -> None:
        for output in self.engine.step():
            self._take(output)

    def _take(self, output: TokenOutput) -> None:
        assert output.error is None
        name = output.request_id
        self.tokens[name] += output.token_ids
        self.sampled[name] += output.logprobs or []
        if output.prompt_logprobs is not None:
            assert name not in self.found
            self.found[name] = output.prompt_logprobs


@pytest.mark.parametrize(
    ("backend", "name", "options"),
    [
        pytest.param("jax", "gemma3", {"chunked_prefill_size": 16}, marks=pytest.mark.slow),
        ("torch", "gemma3", {"chunked_prefill_size": 16}),
        (
            "torch",
            "qwen3",
            {"chunked_prefill_size": 3, "max_running_requests": 3, "disable_overlap_schedule": True},
        ),
        ("torch", "llama", {"chunked_prefill_size": 64, "max_total_tokens": 15 * 8}),  # too few
    ],
)
def test_tiny_models(backend: Any, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Cold and warm; beside rows that decode, whose tokens stay what they are."""
    model = save_tiny_model(name, tmp_path)
    sizes = {"page_size": 8, "max_total_tokens": 64 * 8, "max_running_requests": 6, **options}
    config = EngineConfig(model_path=str(tmp_path), backend=backend, dtype="float32", **sizes)
    rng = np.random.default_rng(3)
    shared = rng.integers(3, 160, 20).tolist()
    prompts = [shared[:cut] + rng.integers(3, 160, length).tolist() for cut, length in
               ((20, 9), (0, 1), (9, 4), (20, 30), (20, 2))]  # fmt: skip
    starts = [0, 0, 5, 17, 3]
    count = 30 if "max_total_tokens" in options else 6
    plain = [int(token) for token in shared[3:12]]
    expected: list[int] = []
    for _ in range(8):
        expected.append(int(logprobs_after(model, [*plain, *expected])[-1].argmax()))
    backend = backend_for(config)
    engine = start_engine(config, backend, describe(config, backend))
    try:
        for turn in ("cold", "warm"):
            served = Turn(engine)
            served.add("plain", plain, max_new_tokens=8)
            served.step()
            for index, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
                served.add(
                    str(index), prompt, max_new_tokens=count, logprobs=TOP, prompt_logprobs=TOP,
                    prompt_logprob_start=start, logprob_token_ids=ASKED,
                )  # fmt: skip
            served.run()
            assert served.tokens["plain"] == expected, turn
            for index, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
                tokens = [*prompt, *served.tokens[str(index)]]
                rows = logprobs_after(model, tokens)
                found = served.found.get(str(index), [])
                check(found, rows[start : len(prompt) - 1], prompt[start + 1 :], TOP)
                check(served.sampled[str(index)], rows[len(prompt) - 1 : -1], tokens[len(prompt) :], TOP)
        if "max_total_tokens" in options:
            assert engine.stats().preemptions, "the pool was to be too small"
    finally:
        engine.runner.close()
