"""The outermost layer: sees every visit to its end, and answers for errors that nobody foresaw."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import CLIENT_GONE, error_response
from .journal import Journal
from .metrics import Metrics
from .visit import Visit, begin_visit

_TRACE_HEADERS = (b"traceparent", b"tracestate")


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, journal: Journal) -> None:
        self._app = app
        self._metrics = metrics
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; an error before the answer began becomes an answer, one after ends it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        trace = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]
                 if name in _TRACE_HEADERS}  # fmt: skip
        visit = Visit(method=scope["method"], parent=trace)
        begin_visit(visit)

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            if visit.status:
                raise
            await error_response(error, scope["path"])(scope, receive, watch)
        finally:
            # The route's pattern, not the path: a label must not grow with what clients invent.
            visit.route = getattr(scope.get("route"), "path", visit.route)
            visit.status = visit.status or CLIENT_GONE  # who left before the answer began
            visit.ended = time.perf_counter()
            self._metrics.count_response(visit.route, visit.status)
            self._journal.note(visit)
