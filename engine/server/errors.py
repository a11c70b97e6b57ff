"""Errors as clients see them: OpenAI's error object, one sentence each, never a traceback."""

import logging
import math
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ..errors import EngineDeadError, NotServingError, QueueFullError, RequestError

log = logging.getLogger("radixmesh.server")

CLIENT_GONE = 499  # nginx's number for an answer that nobody will read; for the metrics
RETRY_AFTER = "1"  # seconds; a step or two frees a place in the queue


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
    (BodyTooLargeError, "invalid_request_error", "body_too_large"),
    (RequestTimeoutError, "timeout_error", "request_timeout"),
    (GenerationError, "server_error", "generation_failed"),
    (RequestError, "invalid_request_error", None),
    (EngineDeadError, "server_error", "engine_dead"),
)


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    """The HTTP status and the body for `error`. What was not raised on purpose is logged, not shown."""
    if isinstance(error, HTTPException):  # unknown route, wrong method
        return error.status_code, _body(str(error.detail), "invalid_request_error", None, None)
    for kind, name, code in _KINDS:
        if isinstance(error, kind):
            status = error.status if isinstance(error, RequestError) else 503
            field = error.field if isinstance(error, RequestError) else None
            return status, _body(str(error), name, field, code)
    log.error("unexpected error while serving a request", exc_info=error)
    message = "the server met an unexpected error; its log has the details"
    return 500, _body(message, "server_error", None, "internal_error")


def error_response(error: BaseException) -> Response:
    """A whole JSON answer for `error`."""
    if isinstance(error, ClientGoneError):
        return Response(status_code=CLIENT_GONE)
    status, body = describe(error)
    headers = {"Retry-After": RETRY_AFTER} if status in (429, 503) else {}
    headers |= dict(getattr(error, "headers", None) or {})
    data = msgspec.json.encode(body)
    return Response(data, status, headers, media_type="application/json")


def error_event(error: BaseException) -> bytes:
    """The last event of a stream that `error` broke off."""
    return b"data: " + msgspec.json.encode(describe(error)[1]) + b"\n\ndata: [DONE]\n\n"


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of every route an OpenAI-style error object."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404:
            error = HTTPException(404, f"there is no route {request.method} {request.url.path}")
        elif isinstance(error, HTTPException) and error.status_code == 405:
            text = f"{request.url.path} does not take {request.method}"
            error = HTTPException(405, text, headers=dict(error.headers or {}))
        return error_response(error)

    # What is none of these, the gate (gate.py) answers: starlette would answer and raise it again.
    for kind in (RequestError, EngineDeadError, HTTPException, ClientGoneError):
        app.add_exception_handler(kind, handle)


def _body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
