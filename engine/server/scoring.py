"""/score: how likely given tokens come next, in many prompts that share a query. /rerank asks so too."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from starlette.types import Receive

from ..errors import RequestError
from ..request import SamplingParams
from .generation import Job, collect
from .openai_common import check_ids, check_model, need_tokenizer
from .protocol.base import shorten
from .protocol.scoring import ScoreBody, is_text_or_ids
from .responses import json_response
from .routes import post
from .state import Server

Prompt = str | list[int]


def add_score_route(app: FastAPI, server: Server) -> None:
    """Add /score and /v1/score to `app`."""

    @post(app, server, "/score", "/v1/score", body=ScoreBody)
    async def score(request: Request, body: ScoreBody) -> Response:
        check_model(server, body.model)
        check_ids(server, body.label_token_ids, "label_token_ids")
        names = [f"items[{index}]" for index in range(len(body.items))]
        asked = Asked(_prompts(server, body, names), names, body.label_token_ids, f"score-{uuid.uuid4().hex}")
        logprobs, usage = await next_logprobs(server, request.receive, asked)
        scores = np.exp(logprobs - _log_sum(logprobs) if body.apply_softmax else logprobs)
        head = {"object": "scoring", "model": server.llm.info.name}
        return json_response({**head, "scores": scores.tolist(), "usage": usage})


def _prompts(server: Server, body: ScoreBody, names: Sequence[str]) -> list[Prompt]:
    """Query and item, for each item. Raises RequestError naming the item."""
    query: Any = body.query  # what follows holds every item to its type
    kind = "a text" if isinstance(query, str) else "a list of token ids"
    if isinstance(query, str):
        need_tokenizer(server, "query")
    else:
        check_ids(server, query, "query")
    prompts = []
    for name, item in zip(names, body.items, strict=True):
        if type(item) is not type(query) or not is_text_or_ids(item):
            raise RequestError(f"{name} is {shorten(item)}; accepted is {kind}, as query is", name)
        if isinstance(item, list):
            check_ids(server, item, name)
        prompts.append(item + query if body.item_first else query + item)
    return prompts


@dataclass(frozen=True, slots=True)
class Asked:
    """P prompts, and the K tokens that may come next."""

    prompts: Sequence[Prompt]  # P
    names: Sequence[str]  # P: what the client calls what makes each prompt its own
    token_ids: Sequence[int]  # K
    id: str


async def next_logprobs(
    server: Server, receive: Receive, asked: Asked
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """[P, K] the log probabilities, and the usage.

    Raises RequestError naming the prompt at fault, for all; what else `collect` raises.
    """
    params = SamplingParams(
        max_new_tokens=1, temperature=0.0, logprobs=0, logprob_token_ids=tuple(asked.token_ids)
    )
    prompts = list(asked.prompts)
    job = Job(prompts, [params] * len(prompts), asked.id, fields=tuple(asked.names))
    outputs = [output for (output,) in await collect(server, receive, job)]
    for name, output in zip(asked.names, outputs, strict=True):
        if not output.logprobs:
            raise RequestError(f"{name}: the request was aborted before its score was there", name, 500)
    count = sum(output.num_prompt_tokens for output in outputs)
    usage = {
        "prompt_tokens": count,
        "completion_tokens": 0,  # what comes next is looked at, not told
        "total_tokens": count,
        "prompt_tokens_details": {"cached_tokens": sum(output.num_cached_tokens for output in outputs)},
    }
    return np.array([output.logprobs[0].asked for output in outputs if output.logprobs]), usage


def _log_sum(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P, 1] the log probability that any of the K comes: float64 [P, K]."""
    return np.logaddexp.reduce(logprobs, axis=1, keepdims=True)
