"""Embeddings of real runners against transformers' hidden states in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.pooling import EMBED
from radixmesh.engine.request import Request
from radixmesh.engine.startup import describe, start_engine
from radixmesh.engine.text.tokenizer import load_tokenizer
from tests.oracle import load_gguf_oracle
from tests.tiny_models import save_tiny_model

TINY: dict[str, Any] = {
    "page_size": 8,
    "max_total_tokens": 64 * 8,
    "max_running_requests": 6,
    "chunked_prefill_size": 16,
}


def embed(engine: Engine, prompts: list[list[int]], turn: str = "") -> list[np.ndarray]:
    """The embeddings of prompts that are asked for at once."""
    for index, prompt in enumerate(prompts):
        engine.add_request(Request(id=f"{turn}{index}", prompt_ids=np.array(prompt, np.int32), params=EMBED))
    found: dict[str, np.ndarray] = {}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None and output.embedding is not None
            found[output.request_id] = np.frombuffer(output.embedding, np.float32)
    return [found[f"{turn}{index}"] for index in range(len(prompts))]


def oracle(model: Any, prompt: list[int], pooling: str) -> np.ndarray:
    with torch.no_grad():
        states = model.model(torch.tensor([prompt])).last_hidden_state[0].numpy()
    pooled: np.ndarray = states.mean(axis=0) if pooling == "mean" else states[-1]
    return pooled


@pytest.mark.parametrize(
    ("backend", "name", "devices", "pooling"),
    [
        pytest.param("jax", "gemma3", {}, "last", marks=pytest.mark.slow),
        pytest.param("jax", "qwen3", {"tp_size": 2, "dp_size": 2}, "mean", marks=pytest.mark.slow),
        ("torch", "gemma3", {}, "mean"),
        ("torch", "qwen3", {"tp_size": 2}, "last"),
    ],
)
def test_tiny_models(backend: Any, name: str, devices: dict[str, Any], pooling: Any, tmp_path: Path) -> None:
    model = save_tiny_model(name, tmp_path)
    config = EngineConfig(
        model_path=str(tmp_path), backend=backend, embedding_pooling=pooling, **TINY, **devices
    )
    rng = np.random.default_rng(3)
    shared = rng.integers(3, 160, 20).tolist()
    prompts = [shared[:cut] + rng.integers(3, 160, length).tolist() for cut, length in
               ((0, 1), (0, 5), (20, 40), (20, 3), (9, 60), (20, 12), (20, 80))]  # fmt: skip
    backend = backend_for(config)
    engine = start_engine(config, backend, describe(config, backend))
    try:
        for turn in ("cold ", "warm "):
            for prompt, got in zip(prompts, embed(engine, prompts, turn), strict=True):
                np.testing.assert_allclose(got, oracle(model, prompt, pooling), rtol=1e-3, atol=2e-4)
    finally:
        engine.runner.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's deprecations
def test_a_real_model() -> None:
    options: dict[str, Any] = {
        "max_total_tokens": 2048,
        "max_running_requests": 8,
        "chunked_prefill_size": 64,
    }
    config = EngineConfig(backend="torch", embedding_pooling="mean", dtype="float32", **options)
    path = backend_for(config).describe(config).path
    tokenizer, model = load_tokenizer(path), load_gguf_oracle(Path(path))
    texts = ["A cat sat on the mat.", "Ein Satz.", "The three laws of motion are " * 20]
    prompts = [tokenizer.encode(text) for text in texts]
    backend = backend_for(config)
    engine = start_engine(config, backend, describe(config, backend))
    try:
        for prompt, got in zip(prompts, embed(engine, prompts), strict=True):
            expected = oracle(model, prompt, "mean")
            cosine = got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)
            assert cosine > 0.9999
            np.testing.assert_allclose(got, expected, rtol=2e-2, atol=2e-2 * np.abs(expected).max())
    finally:
        engine.runner.close()
