"""HTTP/1.1 connections: so many and no more, whose clients must say what they want in time, and hear of their
mistakes in JSON."""

import asyncio
import sys
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

_LAST_WORD = 1.0  # seconds that a client beyond the bound has to begin its request, and be told


def connection_class(timeout: float, most: int | None = None) -> type[H11Protocol]:
    """uvicorn's protocol, with a bound of `timeout` seconds from the first byte of a request (of the first
    one, from the connection's begin) to the end of its headers: neither h11 nor uvicorn has one. At
    most `most` connections of the class are served at once: uvicorn's own bound says not when to come back.
    """
    return type("Connection", (_Connection,), {"receive_timeout": timeout, "most": most, "taken": set()})


class _Connection(H11Protocol):
    """Of the classes that `connection_class` makes, which have what stands here without a value."""

    receive_timeout: float
    most: int | None
    taken: set[H11Protocol]

    _deadline: asyncio.TimerHandle | None = None
    _is_beyond = False  # the bound

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_beyond = self.most is not None and len(self.taken) >= self.most
        if not self._is_beyond:
            self.taken.add(self)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._is_beyond:
            return self._late()
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:  # headers, or a body that nobody reads
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self.taken.discard(self)
        self._stop_waiting()
        super().connection_lost(exc)
        # uvicorn leaves it running when the client left with an error, and with it everything of the
        # connection for `timeout_keep_alive`
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        told = "its headers are too large" if status == 431 else str(error or msg)
        self._refuse(status, f"the request is not valid HTTP/1.1: {told}")

    def _wait(self) -> None:
        if self._deadline is None:
            seconds = min(self.receive_timeout, _LAST_WORD) if self._is_beyond else self.receive_timeout
            self._deadline = self.loop.call_later(seconds, self._late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_beyond:
            self._refuse(503, f"the server has its {self.most} connections, max_connections, open already")
        else:
            self._refuse(408, f"the request did not come within receive_timeout, {self.receive_timeout:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Say why and hang up; only hang up where an answer was given already."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_answer(status, message))
        self.transport.close()


def _answer(status: int, message: str) -> bytes:
    full = status == 503
    fields: dict[str, Any] = {
        "message": message,
        "type": "service_unavailable_error" if full else "invalid_request_error",
        "param": None,
        "code": "too_many_connections" if full else None,
    }
    body = msgspec.json.encode({"error": fields})
    again = "retry-after: 1\r\n" if full else ""
    head = (
        f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"{again}connection: close\r\n\r\n"
    )
    return head.encode() + body
