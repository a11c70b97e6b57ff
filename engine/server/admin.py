"""Models, tokenizing, server information, cache and aborts."""

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ..errors import RequestError
from .errors import ForbiddenError
from .openai_common import check_ids, check_model, need_tokenizer
from .protocol.native import AbortBody, DetokenizeBody, TokenizeBody
from .responses import json_response
from .routes import post
from .state import Server
from .templates import chat_ids
from .visit import current_visit


def add_model_routes(app: FastAPI, server: Server) -> None:
    """Add /v1/models, /tokenize and /detokenize to `app`."""
    name, now = server.llm.info.name, datetime.now(UTC).replace(microsecond=0)
    card = {
        "id": name,
        "object": "model",
        "created": int(now.timestamp()),
        "owned_by": "radixmesh",
        "root": server.llm.config.model_path,
        "parent": None,
        "max_model_len": server.llm.info.context_length,
        # as Anthropic's clients read a model
        "type": "model",
        "display_name": name,
        "created_at": now.isoformat().replace("+00:00", "Z"),
    }

    @app.get("/v1/models")
    async def models() -> Response:
        pages = {"has_more": False, "first_id": name, "last_id": name}  # Anthropic's; there is one
        return json_response({"object": "list", "data": [card], **pages})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        check_model(server, name)
        return json_response(card)

    @post(app, server, "/tokenize", "/v1/tokenize", body=TokenizeBody)
    async def tokenize(request: Request, body: TokenizeBody) -> Response:
        check_model(server, body.model)
        ids = await _token_ids(server, body)
        most = server.llm.info.context_length
        return json_response({"tokens": ids, "count": len(ids), "max_model_len": most})

    @post(app, server, "/detokenize", "/v1/detokenize", body=DetokenizeBody)
    async def detokenize(request: Request, body: DetokenizeBody) -> Response:
        check_model(server, body.model)
        check_ids(server, body.tokens, "tokens")
        tokenizer = need_tokenizer(server, "tokens")
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, body.skip_special_tokens)
        return json_response({"prompt": text, "text": text})


def add_admin_routes(app: FastAPI, server: Server) -> None:
    """Add server information, /flush_cache and /abort_request to `app`."""

    @app.get("/server_info")
    @app.get("/get_server_info")
    async def server_info() -> Response:
        return json_response(_server_info(server))

    @app.get("/model_info")
    @app.get("/get_model_info")
    async def model_info() -> Response:
        config, info = server.llm.config, server.llm.info
        return json_response(
            {
                "model_path": config.model_path,
                "tokenizer_path": config.tokenizer_path or config.model_path,
                "served_model_name": info.name,
                "is_generation": True,
                "has_image_understanding": False,
                "has_audio_understanding": False,
                "vocab_size": info.vocab_size,
                "context_length": info.context_length,
                "eos_token_ids": sorted(info.eos_token_ids),
                "preferred_sampling_params": server.llm.info.default_sampling,
            }
        )

    @app.get("/get_load")
    async def load() -> Response:
        """As SGLang's router asks it: the groups together, for they are behind one address."""
        stats = server.llm.stats
        held = stats.num_pages - stats.free_pages - stats.evictable_pages
        group = {
            "dp_rank": 0,
            "num_reqs": stats.num_running + stats.num_waiting,
            "num_waiting_reqs": stats.num_waiting,
            "num_tokens": held * stats.page_size,
        }
        return json_response([group])

    @app.get("/flush_cache")
    @app.post("/flush_cache")
    async def flush_cache() -> Response:
        if not await server.llm.flush_cache():
            raise RequestError("the cache was not flushed, for requests are running or waiting", status=409)
        return json_response({"success": True, "message": "the cache was flushed"})

    @post(app, server, "/abort_request", body=AbortBody)
    async def abort_request(request: Request, body: AbortBody) -> Response:
        if bool(body.rid) == body.abort_all:
            raise RequestError("accepted is one of rid and abort_all true, and exactly one of them", "rid")
        return json_response({"aborted": await abort(server, None if body.abort_all else body.rid)})


async def abort(server: Server, rid: str | None) -> int:
    """End a request, or with None all; how many were ended.

    Where there is an admin key a caller without it may end its own, and of others' it hears that they are
    not there. Raises ForbiddenError for all at once.
    """
    key, admin = current_visit().key, server.options.keys.admin
    if admin is not None and key != admin:
        if rid is None:
            raise ForbiddenError("abort_all is true, which needs the server's admin key; accepted is a rid")
        if rid not in server.visits or server.visits[rid].key != key:
            return 0
    return await server.llm.abort(rid)


async def _token_ids(server: Server, body: TokenizeBody) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("accepted is one of prompt and messages, and exactly one of them", "prompt")
    if body.messages is not None:
        if body.add_special_tokens:
            raise RequestError(
                "add_special_tokens is true; with messages the chat template writes them, accepted is false",
                "add_special_tokens",
            )
        return await chat_ids(server, body.messages, body.chat_template_kwargs, body.add_generation_prompt)
    if body.chat_template_kwargs:
        raise RequestError(
            "chat_template_kwargs is given; it is accepted only with messages", "chat_template_kwargs"
        )
    tokenizer = need_tokenizer(server, "prompt")
    special = body.add_special_tokens is not False
    return await asyncio.to_thread(tokenizer.encode, body.prompt or "", special)


def _server_info(server: Server) -> dict[str, Any]:
    llm = server.llm
    stats = dataclasses.asdict(llm.stats)
    return {
        **dataclasses.asdict(llm.config),
        "server": server.options.shown(),
        "model": llm.info.name,
        "capacity": dataclasses.asdict(llm.capacity),
        "choices": [
            {"name": each.name, "value": str(each.value), "reason": each.reason}
            for each in (*llm.choices, *server.formats.choices)
        ],
        "stats": stats,
        "internal_states": [stats],  # where SGLang's benchmark client looks
        "heartbeat_age": llm.heartbeat_age,
        "num_open_requests": llm.num_open_requests,
        "num_tasks": len(asyncio.all_tasks()),  # of the server's loop
    }
