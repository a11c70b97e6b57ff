"""Reading a request's body: bounded, UTF-8, strict JSON."""

from typing import TypeVar

import msgspec
from fastapi import Request

from ..errors import RequestError
from .errors import BodyTooLargeError, ClientGoneError
from .protocol.base import Body, parse, shorten

M = TypeVar("M", bound=Body)


async def read_body(request: Request, model: type[M], limit: int) -> M:
    """The body as a checked `model`. Raises RequestError with status 400, 413 or 415."""
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise RequestError(f"content-type is {shorten(kind)}; accepted is application/json", status=415)
    data = await _read_bounded(request, limit)
    try:
        return parse(model, _decode(data))
    except RecursionError:
        raise RequestError("the request body is nested too deeply") from None


async def _read_bounded(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLargeError(f"the request body is {declared} bytes; accepted are at most {limit}")
    parts, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:  # a chunked body does not say its length beforehand
            raise BodyTooLargeError(f"the request body is over {limit} bytes, the most that is accepted")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _decode(data: bytes) -> object:
    """Strict JSON: no NaN, no lone surrogates, nothing after the end."""
    try:
        data.decode()  # msgspec checks strings only when it meets them, and says less
    except UnicodeDecodeError as error:
        raise RequestError(f"the request body is not valid UTF-8 at byte {error.start}") from None
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise RequestError(f"the request body is not valid JSON: {error}") from None
