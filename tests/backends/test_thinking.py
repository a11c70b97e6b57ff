"""Thinking before an answer on real runners: greedy tokens against transformers, bound step by step."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.grammar.grammar import Thinking
from radixmesh.engine.grammar.marks import Words
from radixmesh.engine.grammar.thinking import AnyText, ThinkingMarks, ThinkingMatcher
from radixmesh.engine.grammar.vocabulary import Vocabulary
from radixmesh.engine.request import Request, SamplingParams
from tests.automaton import chain
from tests.tiny_models import save_tiny_model

EOS, OVER, COUNT = 3, 91, 14
Allowed = Callable[[Sequence[int]], set[int]]


def marks(vocab: int) -> ThinkingMarks:
    tokens = tuple(b"</think>" if index == OVER else b"\xff%d" % index for index in range(vocab))
    words = Vocabulary(
        tokens, frozenset(), frozenset([EOS]), lambda text: [OVER] if text == "</think>" else []
    )
    return ThinkingMarks(Thinking("", "</think>"), Words(words))


def greedy(model: Any, prompt: list[int], allowed: Allowed) -> list[int]:
    output: list[int] = []
    while len(output) < COUNT and EOS not in output:
        with torch.no_grad():
            scores = model(torch.tensor([prompt + output])).logits[0, -1].numpy()
        output.append(max(sorted(allowed(output)), key=lambda token: scores[token]))
    return output


@pytest.mark.parametrize("backend", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_rows_that_think_answer_and_are_free(backend: Any, tmp_path: Path) -> None:
    model = save_tiny_model("qwen3", tmp_path)
    config = EngineConfig(
        model_path=str(tmp_path), backend=backend, skip_tokenizer_init=True, dtype="float32", page_size=4,
        max_total_tokens=512, max_running_requests=4, chunked_prefill_size=8,
    )  # fmt: skip
    made = backend_for(config)
    info = made.describe(config)
    runner = made.create_runner(config, info)
    runner.warmup()
    engine = Engine(config, info, runner, strict=True)
    everything = set(range(info.vocab_size))
    answer = chain([20, 21, 22, 23], EOS, free_at=[1], ways=8)

    def held(budget: int) -> Allowed:
        def allowed(output: Sequence[int]) -> set[int]:
            if OVER in output:
                return answer.allowed(list(output)[list(output).index(OVER) + 1 :])
            return {OVER} if len(output) >= budget else everything - {EOS}

        return allowed

    def bounded(output: Sequence[int]) -> set[int]:
        return {OVER} if len(output) == 5 and OVER not in output else everything

    rows: list[tuple[ThinkingMatcher | None, Allowed]] = [
        (ThinkingMatcher(marks(info.vocab_size), answer, 0, False), held(0)),
        (ThinkingMatcher(marks(info.vocab_size), answer, 4, False), held(4)),
        (ThinkingMatcher(marks(info.vocab_size), AnyText(), 5, True), bounded),
        (None, lambda output: everything),
    ]
    rng = np.random.default_rng(7)
    prompts = [rng.integers(4, info.vocab_size, 5 + 3 * index).tolist() for index in range(len(rows))]
    for index, (matcher, _) in enumerate(rows):
        params = SamplingParams(temperature=0.0, max_new_tokens=COUNT)
        ids = np.array(prompts[index], np.int32)
        engine.add_request(Request(str(index), ids, params, eos_token_ids=frozenset([EOS]), matcher=matcher))
    outputs: list[list[int]] = [[] for _ in rows]
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            outputs[int(output.request_id)] += output.token_ids
    runner.close()
    assert outputs == [
        greedy(model, prompt, allowed) for prompt, (_, allowed) in zip(prompts, rows, strict=True)
    ]
    assert outputs[0][:2] == [OVER, 20] and outputs[0][-1] == outputs[1][-1] == EOS
