"""The page at / and what it asks for once a second: chat, and the engine at work.

The page is one answer that holds everything: `ui/page.html` with the styles and scripts beside it put in
place. Its Content-Security-Policy names them by their hashes, so that nothing else can ever run in it, and
lets it talk to this server only.
"""

import asyncio
import base64
import dataclasses
import hashlib
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from ..snapshot import GroupView, NodeView
from .recent import SLOT_SECONDS, SLOTS
from .responses import json_response
from .state import Server

_FOLDER = Path(__file__).parent / "ui"
_SCRIPTS = ("dom.js", "chat.js", "tree.js", "engine.js", "start.js")
_FRESH = 0.5  # seconds in which all who look get the same snapshot
_TEXTS = 4096  # nodes whose text is remembered


def add_page_routes(app: FastAPI, server: Server) -> None:
    """Add / and /engine_state to `app`; where the options say no, just an / that says who is here.

    Either takes HEAD, which the `ollama` command asks before all else.
    """
    if not server.options.ui:
        app.head("/")(app.get("/")(_here))
        return
    text, policy = build_page()
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    view = EngineView(server)

    @app.head("/", response_class=HTMLResponse)
    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        return HTMLResponse(text, headers=headers)

    @app.get("/engine_state")
    async def engine_state() -> Response:
        return json_response(await view.state())


async def _here() -> Response:
    """Ollama's clients ask / whether a server is there, and want 200."""
    return PlainTextResponse("radixmesh is running")


def build_page() -> tuple[str, str]:
    """The whole page, and the Content-Security-Policy that it needs."""
    style = (_FOLDER / "page.css").read_text("utf-8")
    script = "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)
    text = (_FOLDER / "page.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.replace("{style}", style).replace("{script}", script), policy


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


class EngineView:
    """Snapshots of the engine as JSON. However many look, the engine is asked twice a second at most."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._text = lru_cache(maxsize=_TEXTS)(self._decode)
        self._newest: asyncio.Task[list[GroupView]] | None = None
        self._asked = 0.0

    async def state(self) -> dict[str, Any]:
        """What /engine_state answers. Raises EngineDeadError."""
        now = time.monotonic()
        if self._newest is None or (self._newest.done() and now - self._asked > _FRESH):
            self._newest, self._asked = asyncio.create_task(self._server.llm.view()), now
        groups = await asyncio.shield(self._newest)  # others wait for it too
        server = self._server
        return {
            "model": server.llm.info.name,
            "context_length": server.llm.info.context_length,
            "prompts_shown": server.options.ui_prompts,
            "open_requests": server.llm.num_open_requests,
            "sickness": server.sickness(),
            "latency": {
                "slot_seconds": SLOT_SECONDS,
                "slots": SLOTS,
                "ttft": dataclasses.asdict(server.metrics.recent_ttft.quantiles()),
                "itl": dataclasses.asdict(server.metrics.recent_itl.quantiles()),
            },
            "groups": [self._group(each) for each in groups],
        }

    def _group(self, group: GroupView) -> dict[str, Any]:
        return {
            "stats": group.stats,
            "max_running": group.max_running,
            "step_tokens": group.step_tokens,
            "num_prefixes": group.num_prefixes,
            "requests": group.requests,
            "nodes": [self._node(each) for each in group.nodes],
        }

    def _node(self, node: NodeView) -> dict[str, Any]:
        shown = self._server.options.ui_prompts
        return {
            "id": node.id,
            "parent": node.parent,
            "tokens": node.num_tokens,
            "text": self._text(tuple(node.token_ids)) if shown else None,
            "children": node.num_children,
            "hits": node.hits,
            "locks": node.locks,
            "idle": node.idle,
        }

    def _decode(self, token_ids: tuple[int, ...]) -> str:
        """Text, which may begin and end inside of a character; without a tokenizer the ids."""
        tokenizer = self._server.llm.tokenizer
        if tokenizer is None:
            return " ".join(map(str, token_ids))
        return tokenizer.decode(list(token_ids), skip_special_tokens=False).strip("\ufffd")
