"""The engine's own process: a loop that takes messages, steps the engine and sends what came out.

Started by `EngineClient` as `main()` with a folder of sockets, and a line of JSON on stdin (`Start`).
It ends on `Shutdown`, on a fatal error, and when its parent is gone: stdin ends then.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import msgspec
import zmq

from .config import Choice
from .engine import Engine
from .errors import ConfigError, GrammarError, ModelError, QueueFullError, RequestError
from .grammar.queue import GrammarQueue
from .grammar.service import GrammarService
from .messages import (
    Abort,
    AddRequest,
    Described,
    Fatal,
    FlushCache,
    Flushed,
    FromEngine,
    Heartbeat,
    Ready,
    Refused,
    Shutdown,
    Snapshot,
    Start,
    StartFailed,
    TakeSnapshot,
    ToEngine,
    Tokens,
)
from .request import Request
from .runner import ModelInfo
from .startup import all_choices, calm_garbage_collection, describe, start_engine
from .text.tokenizer import tokenizer_of

logger = logging.getLogger(__name__)

HEARTBEAT = 0.5  # seconds between reports of a loop that runs
MAX_MESSAGES = 256  # taken in between two steps, so that a flood of them cannot hold up the loop


class Channel:
    """The two sockets of the engine process. Used by one thread, but for `wake`."""

    def __init__(self, folder: str) -> None:
        self._context = zmq.Context()
        self._inbox = self._socket(zmq.PULL, f"ipc://{folder}/to_engine")
        self._outbox = self._socket(zmq.PUSH, f"ipc://{folder}/from_engine")
        self._alarm, self._bell = os.pipe2(os.O_NONBLOCK)
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._poller.register(self._alarm, zmq.POLLIN)
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._encoder = msgspec.msgpack.Encoder()

    def _socket(self, kind: int, address: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.connect(address)
        return socket

    def send(self, message: FromEngine) -> None:
        """Queue a message for the parent; never blocks."""
        self._outbox.send(self._encoder.encode(message))

    def receive(self, wait: float) -> list[ToEngine]:
        """Messages that are here; waits up to `wait` seconds for the first, or until somebody wakes it."""
        messages: list[ToEngine] = []
        if self._alarm in dict(self._poller.poll(int(wait * 1000))):
            os.read(self._alarm, 4096)
        while len(messages) < MAX_MESSAGES:
            try:
                messages.append(self._decoder.decode(self._inbox.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
        return messages

    def wake(self) -> None:
        """End the wait of `receive`. May be called by any thread."""
        with suppress(BlockingIOError):  # it was told often enough
            os.write(self._bell, b"!")

    def close(self) -> None:
        """Send what is queued, for two seconds at most."""
        self._context.destroy(linger=2000)


class EngineLoop:
    """Takes messages and steps the engine until it is told to stop."""

    def __init__(self, engine: Engine, channel: Channel, grammars: GrammarService) -> None:
        self._engine, self._channel, self._service = engine, channel, grammars
        self._grammars = GrammarQueue(grammars)
        self._running = True
        self._changed = True  # since the last report
        self._reported = 0.0

    def run(self) -> None:
        """The loop. Raises what `Engine.step` and the runner's `check` raise: nothing can be served after."""
        while self._running:
            wait = 0.0 if self._engine.has_work else HEARTBEAT
            for message in self._channel.receive(wait):
                self._handle(message)
            for request, error in self._grammars.take():
                self._try(request.id, partial(self._admit, request, error))
            if self._engine.has_work:
                outputs = self._engine.step()
                self._changed = True
                if outputs:
                    self._channel.send(Tokens(outputs))
            else:
                self._engine.runner.check()
            self._report()

    def close(self) -> None:
        """Release helper processes and the device."""
        self._service.close()
        self._engine.runner.close()

    def _handle(self, message: ToEngine) -> None:
        self._changed = True
        match message:
            case AddRequest():
                self._try(message.id, partial(self._add, message))
            case Abort():
                for request_id in message.ids:
                    self._engine.abort(request_id)
                    self._grammars.abort(request_id)
            case FlushCache():
                self._channel.send(Flushed(message.call, self._engine.flush_cache()))
            case TakeSnapshot():
                self._channel.send(Snapshot(message.call, self._engine.view()))
            case Shutdown():
                self._running = False

    def _add(self, message: AddRequest) -> None:
        held = len(self._grammars)  # they wait as others do, but not in the engine
        if held and held + self._engine.num_waiting >= self._engine.max_waiting:
            raise QueueFullError(
                f"{held + self._engine.num_waiting} requests are waiting, {held} of them for their grammar;"
                f" accepted are at most {self._engine.max_waiting}: try again later"
            )
        request = message.to_request()
        if request.params.grammar is None:
            self._engine.add_request(request)
        else:
            self._grammars.add(request)

    def _admit(self, request: Request, error: GrammarError | None) -> None:
        if error is not None:
            raise error
        self._engine.add_request(request)

    def _try(self, request_id: str, take: Callable[[], None]) -> None:
        """Whatever a request can cause ends that request alone."""
        try:
            take()
        except RequestError as error:
            self._channel.send(Refused(request_id, str(error), error.field, error.status))
        except Exception as error:
            logger.exception("request %s could not be taken", request_id)
            text = f"the engine could not take the request: {type(error).__name__}: {error}"
            self._channel.send(Refused(request_id, text, None, 500))

    def _report(self) -> None:
        """Tell that the loop lives, and its figures: twice a second, and at once when it falls idle."""
        now = time.monotonic()
        if now - self._reported >= HEARTBEAT or (self._changed and not self._engine.has_work):
            stats = self._engine.stats()
            stats = replace(stats, num_waiting=stats.num_waiting + len(self._grammars))
            self._channel.send(Heartbeat(now, stats))
            self._reported, self._changed = now, False


def main() -> None:
    """Entry of the process: arguments are the folder of the sockets and the lifeline's file number."""
    # Ctrl-C and a service manager's SIGTERM reach the whole group; the parent decides what happens
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder, lifeline = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(lifeline, False)  # it tells the parent of this process's end, not of its children's
    channel = Channel(folder)
    try:
        loop = _start(channel)
        status = 1 if loop is None else _serve(loop, channel)
    finally:
        channel.close()
    # no interpreter shutdown: threads of device runtimes may still run and must not hold up the exit
    sys.stderr.flush()
    os._exit(status)


def _start(channel: Channel) -> EngineLoop | None:
    """The loop of a warm engine; None, after the parent was told why, if there is none."""
    try:
        start = msgspec.json.decode(sys.stdin.buffer.readline(), type=Start)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        config, backend = start.config, start.backend()
        info = describe(config, backend)
        channel.send(Described(_plain(info)))
        grammars = GrammarService(config, info, partial(tokenizer_of, config, info), channel.wake)
        loading = grammars.load()  # now, for when there are steps it would hold them up
        engine = start_engine(config, backend, info)
        loading.result()
        choices = all_choices(info, engine.runner.choices)
        channel.send(Ready(engine.runner.capacity, _plain_choices(choices)))
        return EngineLoop(engine, channel, grammars)
    except (ConfigError, ModelError) as error:
        is_config = isinstance(error, ConfigError)
        channel.send(StartFailed("ConfigError" if is_config else "ModelError", str(error)))
    except BaseException as error:
        traceback.print_exc()
        channel.send(StartFailed("other", f"{type(error).__name__}: {error}"))
    return None


def _serve(loop: EngineLoop, channel: Channel) -> int:
    calm_garbage_collection()
    try:
        loop.run()
        loop.close()
        return 0
    except Exception as error:
        traceback.print_exc()
        channel.send(Fatal(f"{type(error).__name__}: {error}"))
        return 1


def _end_with_parent() -> None:
    """Stdin has nothing more to say; it ends when the parent does, in whatever way."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _plain(info: ModelInfo) -> ModelInfo:
    return replace(info, choices=_plain_choices(info.choices))


def _plain_choices(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """Choices whose values can be sent."""
    plain = (int, float, str, bool, type(None))
    return tuple(
        choice if isinstance(choice.value, plain) else choice._replace(value=str(choice.value))
        for choice in choices
    )
