"""How routes that take a body are added: what is checked is what the OpenAPI document shows."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response

from .body import read_body
from .openapi import takes
from .protocol.base import Body
from .state import Server

M = TypeVar("M", bound=Body)
Handler = Callable[[Request, M], Coroutine[Any, Any, Response]]


def post(
    app: FastAPI,
    server: Server,
    *paths: str,
    body: type[M],
    methods: tuple[str, ...] = ("POST",),
    stream_type: str = "text/event-stream",
    **route: Any,
) -> Callable[[Handler[M]], Handler[M]]:
    """Decorate the handler of `paths`, which gets the request and its body, checked as a `body`.

    `stream_type` is that of its streams. `route` goes to FastAPI: `responses`, say, where errors do not
    have OpenAI's form.
    """

    def add(handler: Handler[M]) -> Handler[M]:
        async def endpoint(request: Request) -> Response:
            return await handler(request, await read_body(request, body, server.options.max_body_bytes))

        app.state.bodies.append(body)
        for path in paths:
            for method in methods:
                app.add_api_route(
                    path,
                    endpoint,
                    methods=[method],
                    name=handler.__name__,
                    description=body.__doc__,
                    openapi_extra=takes(body, stream_type),
                    **route,
                )
        return handler

    return add
