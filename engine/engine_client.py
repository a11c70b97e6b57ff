"""`EngineClient`: starts the engine process, talks to it, and notices its end."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from .config import EngineConfig
from .messages import FromEngine, Shutdown, Start, ToEngine
from .runner import Backend

CLOSE_TIMEOUT = 5.0  # seconds that the process has to end by itself
MAX_SOCKET_FOLDER = 80  # characters; the address of a Unix socket has about a hundred


class EngineClient:
    """One engine process. All methods belong to one event loop.

    `on_message` gets every message; `on_death` is called once, with the reason, if the process ends
    before `close`.
    """

    def __init__(self, on_message: Callable[[FromEngine], None], on_death: Callable[[str], None]) -> None:
        self._on_message, self._on_death = on_message, on_death
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._context = zmq.asyncio.Context()
        self._folder = _socket_folder()
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._outbox = self._bind(zmq.Context.shadow(self._context), zmq.PUSH, "to_engine")
        self._inbox = self._bind(self._context, zmq.PULL, "from_engine")
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1  # readable, at its end, as soon as the process is gone
        self._tasks: list[asyncio.Task[None]] = []

    def _bind(self, context: Any, kind: int, name: str) -> Any:
        socket = context.socket(kind)
        socket.set_hwm(0)
        socket.bind(f"ipc://{self._folder}/{name}")
        return socket

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None before the start."""
        return self._process.pid if self._process else None

    def start(self, config: EngineConfig, backend: Backend) -> None:
        """Spawn the process. What becomes of it comes as messages. Must be called within a running loop.

        Raises ConfigError for a backend that another process cannot import.
        """
        line = msgspec.json.encode(Start.of(config, backend)) + b"\n"
        self._lifeline, end = os.pipe()
        try:
            # not multiprocessing: that would run the user's main module a second time
            code = f"import sys; sys.path[:] = {sys.path!r}\n" + (
                f"from {__package__}.engine_process import main; main()"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, self._folder, str(end)],
                stdin=subprocess.PIPE,
                stdout=2,  # stdout is for answers
                pass_fds=(end,),
            )
        finally:
            os.close(end)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended at once; on_death tells
            self._process.stdin.write(line)
            self._process.stdin.flush()  # and left open: its end tells the process that we are gone
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._read()))
        loop.add_reader(self._lifeline, self._on_lifeline)

    def send(self, message: ToEngine) -> None:
        """Queue a message; never blocks. Lost if the process is gone."""
        with suppress(zmq.Again):  # nobody is at the other end; on_death tells everyone
            self._outbox.send(self._encoder.encode(message), zmq.NOBLOCK)

    def kill(self) -> None:
        """End the process as `kill -9` does; `on_death` tells when it is gone."""
        if self._process is not None:
            self._process.kill()

    def forget_folder(self) -> None:
        """Remove the sockets' names, which nobody needs once both sides are connected."""
        self._remove_folder()

    async def close(self, kill: bool = False) -> None:
        """End the process, gently unless `kill`, and remove every trace of it. May be called twice."""
        process, self._process = self._process, None
        try:
            if process is not None:
                asyncio.get_running_loop().remove_reader(self._lifeline)
                if not kill and process.poll() is None:
                    self.send(Shutdown())
                    await _wait(process, CLOSE_TIMEOUT)
        finally:
            for task in self._tasks:
                task.cancel()
            if process is not None:
                process.kill()
                process.wait()
                assert process.stdin is not None
                process.stdin.close()
                os.close(self._lifeline)
            self._outbox.close(linger=0)
            self._context.destroy(linger=0)
            self._remove_folder()

    async def _read(self) -> None:
        while True:
            self._on_message(self._decoder.decode(await self._inbox.recv()))

    def _on_lifeline(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._lifeline)
        self._tasks.append(loop.create_task(self._bury()))

    async def _bury(self) -> None:
        """Take in the process's last words, then tell of its end."""
        assert self._process is not None
        process = self._process
        await _wait(process, CLOSE_TIMEOUT)
        self._tasks[0].cancel()
        while await self._inbox.poll(100):
            self._on_message(self._decoder.decode(await self._inbox.recv()))
        code = process.returncode
        how = (
            f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        )
        self._on_death(f"the engine process {how}")


def _socket_folder() -> str:
    """A new folder that only this user can enter."""
    folder = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="radixmesh-", dir=folder if len(folder) < MAX_SOCKET_FOLDER else "/tmp")


async def _wait(process: "subprocess.Popen[bytes]", timeout: float) -> None:
    """Wait for the end, at most `timeout` seconds."""
    with suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(process.wait, timeout)
