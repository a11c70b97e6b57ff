"""/v1/embeddings: prompts as vectors of length 1."""

import base64
import uuid
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response

from ..batch import F32
from ..errors import RequestError
from ..pooling import EMBED
from .generation import Job, collect
from .openai_common import check_model, need_tokenizer
from .protocol.embeddings import EmbeddingBody
from .responses import json_response
from .routes import post
from .state import Server


def add_embedding_route(app: FastAPI, server: Server) -> None:
    """Add /v1/embeddings to `app`."""

    @post(app, server, "/v1/embeddings", body=EmbeddingBody)
    async def embeddings(request: Request, body: EmbeddingBody) -> Response:
        check_model(server, body.model)
        check_pooling(server)
        if any(isinstance(each, str) for each in body.input):
            need_tokenizer(server, "input")
        job = Job(body.input, [EMBED] * len(body.input), f"embd-{uuid.uuid4().hex}", field="input")
        outputs = [output for (output,) in await collect(server, request.receive, job)]
        vectors = [unit_vector(output.embedding, body.dimensions) for output in outputs]
        count = sum(output.num_prompt_tokens for output in outputs)
        return json_response(
            {
                "object": "list",
                "data": [_entry(index, each, body.encoding_format) for index, each in enumerate(vectors)],
                "model": server.llm.info.name,
                "usage": {"prompt_tokens": count, "total_tokens": count},
            }
        )


def check_pooling(server: Server) -> None:
    """Raise RequestError unless the server makes embeddings."""
    if server.llm.config.embedding_pooling == "none":
        raise RequestError(
            "this server makes no embeddings; one started with --embedding-pooling last or mean does"
        )


def unit_vector(embedding: bytes | None, dimensions: int | None) -> F32:
    """The first `dimensions` of an embedding, scaled to length 1: what a model trained with Matryoshka
    representations (Kusupati et al., 2022) means by fewer dimensions."""
    if embedding is None:
        raise RequestError("the request was aborted before its embedding was there", status=500)
    vector = np.frombuffer(embedding, np.float32)
    if dimensions is not None and dimensions > len(vector):
        raise RequestError(
            f"dimensions is {dimensions}; this model's embeddings have {len(vector)}, which is the most that"
            " is accepted",
            "dimensions",
        )
    vector = vector[:dimensions]
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector


def _entry(index: int, vector: F32, encoding: str) -> dict[str, Any]:
    little = vector.astype("<f4")
    value = base64.b64encode(little.tobytes()).decode() if encoding == "base64" else little.tolist()
    return {"object": "embedding", "index": index, "embedding": value}
