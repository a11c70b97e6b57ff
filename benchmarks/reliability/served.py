"""A server in a process of its own, on a free loopback port, and bare connections to it."""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.running import Running

READER_LIMIT = 2**20  # bytes of one line


@contextmanager
def served(*arguments: str) -> Iterator[Running]:
    """`radixmesh serve ARGUMENTS`; its log is shown if it does not come up."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "radixmesh", "serve", "--port", "0", *arguments]
        # the home folder: where models lie
        running = Running.start(command, Path(folder) / "log", HOME=str(Path.home()))
        try:
            yield running.wait_until_ready(900)
        finally:
            running.end()


def info(url: str) -> dict[str, Any]:
    """What /server_info says."""
    return dict(httpx.get(url + "/server_info", timeout=30).json())


def wait_for(url: str, done: Callable[[dict[str, Any]], bool], seconds: float) -> float:
    """Seconds until `done` holds of /server_info; infinity if it does not in time."""
    started = time.monotonic()
    with httpx.Client(base_url=url, timeout=30) as http:
        while time.monotonic() - started < seconds:
            if done(http.get("/server_info").json()):
                return time.monotonic() - started
            time.sleep(0.02)
    return float("inf")


def is_idle(answer: dict[str, Any]) -> bool:
    """Nothing is open, nothing runs, and every page is free or cached, used by nobody."""
    stats = answer["stats"]
    nothing = answer["num_open_requests"] == stats["num_running"] == stats["num_waiting"] == 0
    pages = stats["free_pages"] + stats["evictable_pages"] == stats["num_pages"] > 0
    return bool(nothing and pages and stats["used_pages"] == 0)


def megabytes(running: Running) -> tuple[float, float]:
    """Resident memory of the server and of the engine process."""
    server, engine = psutil.Process(running.process.pid), running.engine()
    return server.memory_info().rss / 2**20, engine.memory_info().rss / 2**20


async def post(url: str, path: str, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request on a connection of its own; what comes is the caller's to read, or not."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=READER_LIMIT)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + data)
    await writer.drain()
    return reader, writer


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]


async def ask(url: str, path: str, body: Any) -> Answer:
    """Send a request on a connection of its own and read the answer, which must be one JSON object.

    Not by httpx: its pool holds requests back for seconds before it sends them, once hundreds are open, and
    those seconds would look like the server's. Raises OSError, ValueError for what is no answer.
    """
    reader, writer = await post(url, path, body)
    try:
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        first, *fields = head.decode("latin-1").split("\r\n")
        pairs = (field.split(":", 1) for field in fields)
        return Answer(
            int(first.split()[1]), {name.lower(): value.strip() for name, value in pairs}, json.loads(content)
        )
    except IndexError:
        raise ValueError(f"no answer but {head!r}") from None
    finally:
        writer.close()


async def lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a streamed answer as they come, without the empty ones and the sizes of chunks."""
    while line := await reader.readline():
        if len(text := line.strip()) > 8:
            yield text
