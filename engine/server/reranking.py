"""/rerank: documents by how well they meet a query, of models that judge it: text/judge.py says which."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response

from ..errors import RequestError
from ..text.judge import find_judge
from .openai_common import check_model
from .protocol.base import parse, shorten
from .protocol.scoring import RerankBody, RerankDocument
from .responses import json_response
from .routes import post
from .scoring import Asked, next_logprobs
from .state import Server


def add_rerank_route(app: FastAPI, server: Server) -> None:
    """Add /rerank, /v1/rerank and /v2/rerank to `app`."""
    names = (server.llm.info.name, Path(server.llm.config.model_path).name)

    @post(app, server, "/rerank", "/v1/rerank", "/v2/rerank", body=RerankBody)
    async def rerank(request: Request, body: RerankBody) -> Response:
        check_model(server, body.model)
        texts = [_text(each, f"documents[{index}]") for index, each in enumerate(body.documents)]
        judge = find_judge(server.llm.tokenizer, names)
        most = server.llm.info.context_length
        prompts = await asyncio.to_thread(judge.prompts, body.query, texts, body.instruct, most)
        fields = [f"documents[{index}]" for index in range(len(texts))]
        asked = Asked(prompts, fields, (judge.yes, judge.no), f"rerank-{uuid.uuid4().hex}")
        logprobs, usage = await next_logprobs(server, request.receive, asked)
        # log odds: of two that round to a probability of 1, the better one still comes first
        odds = logprobs[:, 0] - logprobs[:, 1]
        best = np.argsort(-odds, kind="stable")[: body.top_n]
        relevance = np.exp(-np.logaddexp(0.0, -odds))
        results = [
            {"index": index, "relevance_score": float(relevance[index])}
            | ({"document": {"text": texts[index]}} if body.return_documents else {})
            for index in best.tolist()
        ]
        head = {"id": asked.id, "model": server.llm.info.name}
        return json_response({**head, "results": results, "usage": usage})


def _text(document: Any, name: str) -> str:
    """The text of one of `documents`. Raises RequestError naming it."""
    if isinstance(document, str):
        return document
    if not isinstance(document, dict):
        text = f"{name} is {shorten(document)}; accepted is a string, or an object with text"
        raise RequestError(text, name)
    return parse(RerankDocument, document, name).text
