"""A small HTTP/1.1 client on asyncio streams, for the serving benchmark.

It shares the machine's cores with the server that it measures, so it does no more than a benchmark
needs: one request per connection, JSON bodies, answers read whole or line by line as they come.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from ...errors import ConfigError

_LINE_LIMIT = 2**22  # bytes; a line with many logprobs is long


class HttpError(Exception):
    """The server cannot be reached, closed early, or answered with a status other than 200."""


class Answer:
    """An answer whose head has been read. `lines` or `read` then gives its body."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self._reader = reader
        self._headers = headers

    async def lines(self) -> AsyncIterator[bytes]:
        """The body's lines, each as soon as it is here."""
        rest = b""
        async for piece in self._pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.rstrip(b"\r")
        if rest:
            yield rest

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self._pieces()])

    async def _pieces(self) -> AsyncIterator[bytes]:
        if self._headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._reader.readline()).split(b";")[0] or b"0", 16):
                yield await self._reader.readexactly(size)
                await self._reader.readline()
        elif "content-length" in self._headers:
            yield await self._reader.readexactly(int(self._headers["content-length"]))
        else:
            while piece := await self._reader.read(2**16):
                yield piece


@asynccontextmanager
async def request(
    method: str, url: str, body: object = None, api_key: str | None = None
) -> AsyncIterator[Answer]:
    """Send one request; the answer's body is read inside the `async with`.

    Raises HttpError when there is no answer or it breaks off, with its text when its status is not 200.
    """
    parts = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(
            parts.hostname,
            parts.port or (443 if parts.scheme == "https" else 80),
            ssl=ssl.create_default_context() if parts.scheme == "https" else None,
            limit=_LINE_LIMIT,
        )
    except OSError as error:
        raise HttpError(f"{parts.netloc} cannot be reached: {error}") from error
    try:
        writer.write(_head(method, url, body, api_key))
        await writer.drain()
        answer = await _read_head(reader)
        if answer.status != 200:
            text = (await answer.read()).decode(errors="replace")
            raise HttpError(f"{method} {parts.path} gave status {answer.status}: {text[:500]}")
        yield answer
    except (OSError, EOFError, ValueError) as error:
        raise HttpError(f"{method} {parts.path} broke off: {error or type(error).__name__}") from error
    finally:
        writer.close()


async def fetch_json(method: str, url: str, body: object = None, api_key: str | None = None) -> Any:
    """The JSON of an answer, or its text where it is none. Raises HttpError."""
    async with request(method, url, body, api_key) as answer:
        data = await answer.read()
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


async def stream_events(url: str, body: object, api_key: str | None = None) -> AsyncIterator[Any]:
    """The objects of a stream of server-sent events, up to its end. Raises HttpError."""
    async with request("POST", url, body, api_key) as answer:
        async for line in answer.lines():
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                yield json.loads(data)


def check_url(url: str) -> str:
    """`url` without a slash at its end. Raises ConfigError unless it is one of http or https."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        good = False
    if not good:
        raise ConfigError(f"base_url is {url!r}; accepted is an address such as http://127.0.0.1:30000")
    return url.rstrip("/")


def _head(method: str, url: str, body: object, api_key: str | None) -> bytes:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    if body is not None:
        lines.append("Content-Type: application/json")
    if api_key is not None:
        lines.append(f"Authorization: Bearer {api_key}")
    lines.append(f"Content-Length: {len(data)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


async def _read_head(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
    return Answer(reader, int(head[0].split()[1]), headers)
