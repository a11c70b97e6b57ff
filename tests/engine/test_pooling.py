"""Embeddings through the whole engine with the fake runner, against a sum over token lists."""

import random
from typing import Any

import numpy as np
import pytest

from radixmesh.backends.fake.oracle import expected_embedding, expected_tokens
from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.errors import RequestError
from radixmesh.engine.outputs import TokenOutput
from radixmesh.engine.pooling import EMBED
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, RunnerCapacity

VOCAB = 997


def make_engine(pooling: Any, pages: int = 64, **options: Any) -> Engine:
    capacity = RunnerCapacity(
        num_pages=pages, page_size=4, max_running_requests=8, max_step_tokens=24, max_page_indices=4 * pages
    )
    info = ModelInfo("fake", "", VOCAB, 200, frozenset({3}))
    config = EngineConfig(embedding_pooling=pooling, **options)
    return Engine(config, info, FakeRunner(capacity, VOCAB, pooling=pooling), strict=True)


def request(name: str, prompt: list[int], params: SamplingParams = EMBED) -> Request:
    return Request(id=name, prompt_ids=np.array(prompt, np.int32), params=params)


def run(engine: Engine) -> dict[str, TokenOutput]:
    """The last output of each request."""
    last: dict[str, TokenOutput] = {}
    while engine.has_work:
        last |= {output.request_id: output for output in engine.step()}
        engine.schedulers[0].cache.check_integrity()
    return last


def check(output: TokenOutput, prompt: list[int], pooling: str) -> None:
    assert output.finish_reason == "length" and output.embedding is not None
    got = np.frombuffer(output.embedding, np.float32)
    np.testing.assert_allclose(got, expected_embedding(prompt, mean=pooling == "mean"), rtol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_cached_prompt_has_the_same_embedding(pooling: str) -> None:
    engine = make_engine(pooling)
    prompt = list(range(5, 66))
    for turn in range(3):
        engine.add_request(request(f"{turn}", prompt))
        output = run(engine)[f"{turn}"]
        check(output, prompt, pooling)
        # the last state needs no more than the last token computed; a mean needs all
        assert (output.num_cached_tokens > 0) == (pooling == "last" and turn > 0)
    assert engine.stats().cached_pages == 61 // 4


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("pages", [40, 400])
@pytest.mark.parametrize("overlap", [True, False])
def test_chunks_neighbours_and_preemption_change_nothing(pooling: str, pages: int, overlap: bool) -> None:
    """Embeddings among texts, prompts of several chunks with common beginnings, pages for few of them."""
    rng = random.Random(pages)
    engine = make_engine(pooling, pages, disable_overlap_schedule=not overlap)
    shared = [rng.randrange(4, VOCAB) for _ in range(30)]
    texts = SamplingParams(max_new_tokens=40, temperature=0.0, ignore_eos=True)
    prompts = {
        f"{kind}-{index}": shared[: rng.randrange(30)]
        + [rng.randrange(4, VOCAB) for _ in range(rng.randint(1, 60))]
        for index in range(25)
        for kind in ("embed", "text")
    }
    outputs: dict[str, list[TokenOutput]] = {name: [] for name in prompts}
    waiting = list(prompts.items())
    while waiting or engine.has_work:
        for name, prompt in waiting[:3]:
            engine.add_request(request(name, prompt, EMBED if name.startswith("embed") else texts))
        del waiting[:3]
        for output in engine.step():
            outputs[output.request_id].append(output)
    for name, prompt in prompts.items():
        if name.startswith("embed"):
            check(outputs[name][-1], prompt, pooling)
        else:
            ids = [token for output in outputs[name] for token in output.token_ids]
            assert ids == expected_tokens(prompt, 40, VOCAB)
            assert all(output.embedding is None for output in outputs[name])
    stats = engine.stats()
    assert (stats.preemptions > 0) == (pages == 40)
    assert stats.free_pages + stats.cached_pages == stats.num_pages


def test_an_engine_without_pooling_refuses() -> None:
    engine = make_engine("none")
    with pytest.raises(RequestError, match="embedding_pooling"):
        engine.add_request(request("one", [1, 2, 3]))


def test_an_embedding_has_no_text() -> None:
    with pytest.raises(RequestError, match="^embed is true"):
        SamplingParams(embed=True, max_new_tokens=2)
    with pytest.raises(RequestError, match="^embed is true"):
        SamplingParams(embed=True, max_new_tokens=1, n=2)
