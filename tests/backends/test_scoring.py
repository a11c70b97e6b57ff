"""/score and /rerank on a real runner against softmaxes of transformers' logits in float32."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from radixmesh.backends.registry import backend_for
from radixmesh.engine.async_llm import AsyncLLM
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.server.app import create_app
from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.text.judge import find_judge
from radixmesh.engine.text.tokenizer import Tokenizer
from tests.engine.text.test_fim import with_marks
from tests.engine.text.test_judge import NO, QWEN3, YES
from tests.oracle import oracle_logits
from tests.tiny_models import save_tiny_model

LABELS = [5, 200, 17]
DOCUMENTS = ["Paris is the capital of France.", "Cats sleep.", "", "A capital is a city. " * 5]


def probabilities(
    model: Any, prompt: list[int], ids: list[int], among: list[int] | None = None
) -> np.ndarray:
    """Of `ids` as the next token, among all tokens or among some."""
    logits = oracle_logits(model, prompt)[-1].astype(np.float64)
    weights = np.exp(logits - logits.max())
    shares: np.ndarray = weights[ids] / weights[among if among is not None else slice(None)].sum()
    return shares


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_tiny_reranker(backend: Any, tmp_path: Path) -> None:
    model = save_tiny_model("qwen3", tmp_path, vocab_size=261, max_position_embeddings=512)
    tokenizer = Tokenizer(with_marks(tmp_path, "yes", "no").fast, QWEN3)
    (tmp_path / "template").write_text(QWEN3)
    config = EngineConfig(
        model_path=str(tmp_path), served_model_name="tiny-reranker", backend=backend, page_size=8,
        chat_template=str(tmp_path / "template"), max_total_tokens=2048, max_running_requests=6,
        chunked_prefill_size=64,
    )  # fmt: skip
    items = [list(text.encode()) for text in ("one", "two words", "a third")]
    query = list(b"A query that takes some pages. ")

    async def ask() -> list[Any]:
        llm = AsyncLLM(config, backend_for(config))
        await llm.start()
        try:
            transport = httpx.ASGITransport(app=create_app(llm, ServerOptions()))
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=600) as client:
                asked = {"query": query, "items": items, "label_token_ids": LABELS}
                reranked = {"query": "What is the capital?", "documents": DOCUMENTS}
                return [
                    (await client.post("/score", json=asked)).json(),
                    (await client.post("/score", json={**asked, "apply_softmax": True})).json(),
                    (await client.post("/rerank", json=reranked)).json(),
                ]
        finally:
            await llm.close()

    plain, shared, reranked = asyncio.run(ask())
    for item, scores, shares in zip(items, plain["scores"], shared["scores"], strict=True):
        np.testing.assert_allclose(scores, probabilities(model, query + item, LABELS), rtol=1e-3, atol=1e-7)
        expected = probabilities(model, query + item, LABELS, LABELS)
        np.testing.assert_allclose(shares, expected, rtol=1e-3, atol=1e-7)
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * (len(query) // 8 * 8)

    prompts = find_judge(tokenizer, ["reranker"]).prompts("What is the capital?", DOCUMENTS, None, 512)
    relevance = [float(probabilities(model, prompt, [YES], [YES, NO])[0]) for prompt in prompts]
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -relevance[index])
    assert [each["index"] for each in reranked["results"]] == order
    got = [each["relevance_score"] for each in reranked["results"]]
    np.testing.assert_allclose(got, [relevance[index] for index in order], rtol=1e-3)
