"""Errors as clients see them: one sentence each, in the form of the route's dialect, never a traceback."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ..errors import EngineDeadError, NotServingError, QueueFullError, RequestError

log = logging.getLogger("radixmesh.server")

CLIENT_GONE = 499  # nginx's number for an answer that nobody will read; for the metrics
MAX_RETRY_AFTER = 60  # seconds; a forecast of more is no better than this


class ModelNotFoundError(RequestError):
    """The request names a model that this server does not serve."""

    status = 404


class UnauthorizedError(RequestError):
    """The request brings no key, or none that is known."""

    status = 401
    headers = {"WWW-Authenticate": "Bearer"}


class ForbiddenError(RequestError):
    """The key is known, and may not do this."""

    status = 403


class RateLimitError(RequestError):
    """A key has used what it may; `headers` say when to come again."""

    status = 429

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(f"{message}; try again in {math.ceil(wait)} s")
        self.headers = {"Retry-After": str(math.ceil(wait))}


class HeadersTooLargeError(RequestError):
    """The request's headers are over `max_header_bytes`."""

    status = 431


class BodyTimeoutError(RequestError):
    """The request's body did not come within `receive_timeout`."""

    status = 408
    headers = {"Connection": "close"}


class ResponseNotFoundError(RequestError):
    """There is no response of this id, or none of the caller's."""

    status = 404


class BodyTooLargeError(RequestError):
    """The request body is over `max_body_bytes`."""

    status = 413


class RequestTimeoutError(RequestError):
    """The request took longer than `request_timeout`, and was aborted."""

    status = 504


class GenerationError(RequestError):
    """The engine ended this one request with an error."""

    status = 500


class ClientGoneError(Exception):
    """The client closed its connection; nobody reads an answer."""


# exception class -> (type, code), the first that fits
_KINDS: tuple[tuple[type[Exception], str, str | None], ...] = (
    (RateLimitError, "rate_limit_error", "rate_limit_exceeded"),
    (UnauthorizedError, "authentication_error", "invalid_api_key"),
    (ForbiddenError, "permission_error", "admin_key_needed"),
    (HeadersTooLargeError, "invalid_request_error", "headers_too_large"),
    (BodyTimeoutError, "timeout_error", "body_timeout"),
    (QueueFullError, "rate_limit_error", "queue_full"),
    (NotServingError, "service_unavailable_error", "not_serving"),
    (ModelNotFoundError, "invalid_request_error", "model_not_found"),
    (ResponseNotFoundError, "invalid_request_error", "response_not_found"),
    (BodyTooLargeError, "invalid_request_error", "body_too_large"),
    (RequestTimeoutError, "timeout_error", "request_timeout"),
    (GenerationError, "server_error", "generation_failed"),
    (RequestError, "invalid_request_error", None),
    (EngineDeadError, "server_error", "engine_dead"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is told of an error. `kind` and `code` are OpenAI's words, `param` the field at fault."""

    status: int
    message: str
    kind: str
    param: str | None = None
    code: str | None = None


def describe(error: BaseException) -> Fault:
    """What is told of `error`. What was not raised on purpose is logged, not shown."""
    if isinstance(error, HTTPException):  # unknown route, wrong method
        return Fault(error.status_code, str(error.detail), "invalid_request_error")
    for kind, name, code in _KINDS:
        if isinstance(error, kind):
            status = error.status if isinstance(error, RequestError) else 503
            field = error.field if isinstance(error, RequestError) else None
            return Fault(status, str(error), name, field, code)
    log.error("unexpected error while serving a request", exc_info=error)
    message = "the server met an unexpected error; its log has the details"
    return Fault(500, message, "server_error", code="internal_error")


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How one API tells errors: `body` in an answer, and between `before` and `after` at a stream's end."""

    body: Callable[[Fault], dict[str, Any]]
    before: bytes
    after: bytes


def _openai(fault: Fault) -> dict[str, Any]:
    fields = {"message": fault.message, "type": fault.kind, "param": fault.param, "code": fault.code}
    return {"error": fields}


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _anthropic(fault: Fault) -> dict[str, Any]:
    default = "api_error" if fault.status >= 500 else "invalid_request_error"
    kind = _ANTHROPIC_TYPES.get(fault.status, default)
    return {"type": "error", "error": {"type": kind, "message": fault.message}}


def _ollama(fault: Fault) -> dict[str, Any]:
    return {"error": fault.message}


_OPENAI = _Dialect(_openai, b"data: ", b"\n\ndata: [DONE]\n\n")
# the routes below a path -> their dialect; all others have OpenAI's
_DIALECTS = {
    "/v1/messages": _Dialect(_anthropic, b"event: error\ndata: ", b"\n\n"),
    "/api/": _Dialect(_ollama, b"", b"\n"),
}


def _dialect(path: str) -> _Dialect:
    return next((each for begin, each in _DIALECTS.items() if path.startswith(begin)), _OPENAI)


def error_response(error: BaseException, path: str) -> Response:
    """A whole JSON answer for `error`, from the route `path`."""
    if isinstance(error, ClientGoneError):
        return Response(status_code=CLIENT_GONE)
    fault = describe(error)
    headers = {"Retry-After": _retry_after(error)} if fault.status in (429, 503) else {}
    headers |= dict(getattr(error, "headers", None) or {})
    data = msgspec.json.encode(_dialect(path).body(fault))
    return Response(data, fault.status, headers, media_type="application/json")


def _retry_after(error: BaseException) -> str:
    """Whole seconds: until the queue of now will be empty, or until an engine may be there again."""
    seconds = getattr(error, "retry_after", 1.0)
    return str(min(max(math.ceil(seconds), 1), MAX_RETRY_AFTER))


def error_event(error: BaseException, path: str) -> bytes:
    """The end of a stream of the route `path` that `error` broke off."""
    dialect = _dialect(path)
    return dialect.before + msgspec.json.encode(dialect.body(describe(error))) + dialect.after


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of every route an error object of its dialect."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404:
            error = HTTPException(404, f"there is no route {request.method} {request.url.path}")
        elif isinstance(error, HTTPException) and error.status_code == 405:
            text = f"{request.url.path} does not take {request.method}"
            error = HTTPException(405, text, headers=dict(error.headers or {}))
        return error_response(error, request.url.path)

    # What is none of these, the gate (gate.py) answers: starlette would answer and raise it again.
    for kind in (RequestError, EngineDeadError, HTTPException, ClientGoneError):
        app.add_exception_handler(kind, handle)
