"""`serve`: the engine process, the HTTP server over it, and how both end.

start     bind the port (a port in use is known at once), start the engine, tell what was chosen, listen
SIGTERM   /health and new requests get 503, running ones finish within `drain_timeout`; status 0
again     running requests are aborted now
engine    its end fails open requests and turns /health red; then a new one is started (`restart_engine`),
          or the server ends with status 1
"""

import asyncio
import math
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from ..async_llm import AsyncLLM
from ..config import EngineConfig
from ..errors import ConfigError
from ..runner import Backend
from ..startup import print_choices
from .app import create_app
from .connection import connection_class
from .journal import configure_logging
from .options import ServerOptions
from .state import Server
from .supervisor import until_engine_is_gone

_BACKLOG = 2048  # connections that may wait to be taken
_KEEP_ALIVE = 75  # seconds; clients and proxies drop idle connections after 5 to 60, and must be the first
_LAST_WORDS = 2.0  # seconds in which clients still hear that the engine died
_GOODBYE = 5  # seconds for answers to be written after the last request ended


def serve(config: EngineConfig, options: ServerOptions, backend: Backend) -> int:
    """Serve until told to stop, or until the engine is dead for good; the process's exit status.

    Raises ConfigError when the address cannot be bound, and what the engine's start raises.
    """
    if options.restart_engine and config.nnodes > 1:
        raise ConfigError(
            f"restart_engine is set and nnodes is {config.nnodes}; accepted is 1: the processes of several"
            " hosts end together"
        )
    configure_logging(options)
    with bind(options) as listener:
        return asyncio.run(_serve(config, options, backend, listener))


def bind(options: ServerOptions) -> socket.socket:
    """A socket bound to the options' address, not yet listening. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # TCP by name: only then asyncio turns off Nagle's algorithm, which holds each second write back for 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A port whose last server just ended is free; one that somebody listens on is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.stall_timeout is not None:
            _watch_clients(listener, options.stall_timeout)
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {options.port} on host {options.host} cannot be bound: {error.strerror or error};"
            " accepted are a local address and a port that is free"
        ) from None
    return listener


def _watch_clients(listener: socket.socket, seconds: float) -> None:
    """Have the kernel close connections whose client takes nothing of what was sent, or is not there any
    more, for so long. What a listening socket is told holds for the connections that it takes."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(seconds * 1000))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(seconds))


def _listen(listener: socket.socket, options: ServerOptions) -> None:
    """Take connections from now on; uvicorn answers them a moment later. Raises ConfigError."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # two servers bound the port at once, and the other was faster
        raise ConfigError(f"port {options.port} cannot be listened on: {error.strerror or error}") from None


async def _serve(
    config: EngineConfig, options: ServerOptions, backend: Backend, listener: socket.socket
) -> int:
    signals: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, None)
    llm = AsyncLLM(config, backend)
    try:
        if not await _unless_signalled(llm.start(), signals):
            return 0
        app = create_app(llm, options)
        print_choices(app.state.server.formats.choices)
        async with _grpc(app.state.server):
            _listen(listener, options)
            _announce(llm, options, listener)
            return await _run(app, options, listener, signals)
    finally:
        await llm.close()


async def _unless_signalled(work: Coroutine[Any, Any, None], signals: "asyncio.Queue[None]") -> bool:
    """Await `work`; False, with `work` cancelled, when a signal comes first."""
    task, signalled = asyncio.create_task(work), asyncio.create_task(signals.get())
    await asyncio.wait((task, signalled), return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


async def _run(
    app: FastAPI, options: ServerOptions, listener: socket.socket, signals: "asyncio.Queue[None]"
) -> int:
    """Listen until a signal, or the engine's end; the exit status."""
    llm: AsyncLLM = app.state.server.llm
    server = _Uvicorn(
        uvicorn.Config(
            app,
            http=connection_class(options.receive_timeout, options.max_connections),
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
            ws="none",
            h11_max_incomplete_event_size=options.max_header_bytes,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_GOODBYE,
        )
    )
    listening = asyncio.create_task(server.serve(sockets=[listener]))
    signalled = asyncio.create_task(signals.get())
    dead = asyncio.create_task(until_engine_is_gone(app.state.server))
    await asyncio.wait((listening, signalled, dead), return_when=asyncio.FIRST_COMPLETED)
    was_alive = llm.alive
    if signalled.done() and not dead.done():
        await _drain(app.state.server, dead, signals)
    if dead.done():
        print("radixmesh: error: the engine process has ended; the server ends with it", file=sys.stderr)
        await asyncio.wait((listening,), timeout=_LAST_WORDS)
    # asked to end while a new engine was starting: that one is not missed
    in_order = signalled.done() and not dead.done() and (llm.alive or not was_alive)
    server.should_exit = True
    for task in (signalled, dead):
        task.cancel()
    await asyncio.wait((listening, dead))
    await asyncio.to_thread(app.state.server.journal.close)
    listening.result()
    return 0 if in_order else 1


@asynccontextmanager
async def _grpc(server: Server) -> AsyncIterator[None]:
    """The gRPC service, if there is to be one. Raises ConfigError when its port is taken."""
    if server.options.grpc_port is None:
        yield
        return
    from ..grpc.edge import start_grpc  # packages of an extra load here

    edge = await start_grpc(server)
    print(f"radixmesh serves gRPC at {edge.address}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        await edge.stop(_GOODBYE)


async def _drain(server: Server, dead: "asyncio.Task[None]", signals: "asyncio.Queue[None]") -> None:
    """Let running requests finish; a second signal, or the engine's end, cuts it short."""
    count, limit = server.llm.num_open_requests, server.options.drain_timeout
    print(f"stopping: {count} running requests have {limit:g} s to finish", file=sys.stderr)
    server.draining = True
    drained = asyncio.create_task(server.llm.drain(limit))
    again = asyncio.create_task(signals.get())
    await asyncio.wait((drained, again, dead), return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not drained.done():
        drained.cancel()
        if not dead.done():
            await server.llm.abort(None)


class _Uvicorn(uvicorn.Server):
    """uvicorn, without its signal handlers: ours drain first."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _announce(llm: AsyncLLM, options: ServerOptions, listener: socket.socket) -> None:
    """Tell the model and the address, after every automatic choice."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if options.ssl_certfile else "http"
    print(f"radixmesh serves {llm.info.name} at {scheme}://{host}:{port}", file=sys.stderr, flush=True)
