"""Streams: one write for what one engine step brought, as server-sent events or lines of JSON."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ClientGoneError, error_event, error_response
from .generation import time_limit, until_gone
from .state import Server

DONE = b"data: [DONE]\n\n"

EVENTS = b"text/event-stream; charset=utf-8"
LINES = b"application/x-ndjson"

_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies must not collect events
]


def event(data: Any, name: str = "") -> bytes:
    """One server-sent event with `data` as JSON, and a name if the dialect has names."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


def line(data: Any) -> bytes:
    """`data` as one line of JSON."""
    return msgspec.json.encode(data) + b"\n"


class EventStream(Response):
    """An answer whose bytes come from `events`, each item one write.

    The status line waits for the first item, so that a request refused by the engine gets its own
    status, not an event in a stream of status 200. A client that leaves closes `events`.
    """

    def __init__(self, server: Server, events: AsyncGenerator[bytes, None], kind: bytes = EVENTS) -> None:
        super().__init__()
        self._server = server
        self._events = events
        self._head = [(b"content-type", kind), *_HEADERS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; errors become an error answer before its start, an error event after."""
        try:
            await until_gone(receive, self._send(scope, receive, send))
        except ClientGoneError:
            pass

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        head = {"type": "http.response.start", "status": 200, "headers": self._head}
        try:
            async with time_limit(self._server), aclosing(self._events) as events:
                async for data in events:
                    if not started:
                        started = True
                        await send(head)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            if not started:
                return await error_response(error, scope["path"])(scope, receive, send)
            await send(
                {"type": "http.response.body", "body": error_event(error, scope["path"]), "more_body": True}
            )
        if not started:  # nothing came, and nothing was wrong
            await send(head)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
