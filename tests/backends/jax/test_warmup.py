"""Start-up compiles every shape that a step can have."""

from pathlib import Path
from random import Random

import jax
import numpy as np
import pytest

from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.request import Request, SamplingParams
from tests.automaton import random_automaton
from tests.tiny_models import save_tiny_model

KINDS = [
    SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0.9, top_k=20, top_p=0.8, min_p=0.01, max_new_tokens=6),
    SamplingParams(frequency_penalty=1.0, logprobs=2, logit_bias={5: 2.0}, max_new_tokens=6),
    SamplingParams(temperature=0.5, repetition_penalty=1.2, min_new_tokens=3, max_new_tokens=6),
]


@pytest.mark.slow
def test_nothing_compiles_after_warmup(tmp_path: Path) -> None:
    """Every bucket and sampling variant, mixed lengths, masks and aborts: not one backend compilation."""
    save_tiny_model("gemma3", tmp_path)
    config = EngineConfig(
        model_path=str(tmp_path), backend="jax", page_size=8, chunked_prefill_size=32, max_running_requests=8,
        max_total_tokens=1024,
    )  # fmt: skip
    backend = backend_for(config)
    info = backend.describe(config)
    runner = backend.create_runner(config, info)
    runner.warmup()
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        random = np.random.default_rng(0)
        engine = Engine(config, info, runner, strict=True)
        for index in range(60):
            ids = random.integers(3, 160, random.integers(1, 70)).astype(np.int32)
            params = KINDS[random.integers(len(KINDS))]
            request = Request(id=str(index), prompt_ids=ids, params=params, seed=index)
            if index % 3 == 0:
                request.matcher = random_automaton(Random(index), 160, eos=1).matcher()
            engine.add_request(request)
            for _ in range(random.integers(3)):
                engine.step()
            if index % 5 == 0:
                engine.abort(str(random.integers(index + 1)))
        while engine.has_work:
            engine.step()
        during = list(compiled)
        jax.jit(lambda x: x * 3 + len(compiled))(np.arange(7)).block_until_ready()  # the listener does hear
    finally:
        jax.monitoring.clear_event_listeners()
        runner.close()
    stats = engine.stats()
    assert stats.finished > 40 and stats.aborted > 3 and stats.constrained_tokens > 40 and not stats.errors
    assert during == [] and compiled
