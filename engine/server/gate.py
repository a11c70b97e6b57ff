"""The outermost layer: counts every response, and answers for errors that nobody foresaw."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import CLIENT_GONE, error_response
from .metrics import Metrics


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; an error before the answer began becomes a 500, one after ends it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            if status:
                raise
            await error_response(error)(scope, receive, watch)
        finally:
            # The route's pattern, not the path: a label must not grow with what clients invent.
            route = getattr(scope.get("route"), "path", "unknown")
            # A client that left before its stream began got no answer at all.
            self._metrics.count_response(route, status or CLIENT_GONE)
