"""`AsyncLLM`: streaming generation; the engine runs in a process of its own."""

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterator
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any, Self

from .config import Choice, EngineConfig
from .engine_client import EngineClient
from .errors import (
    ConfigError,
    EngineDeadError,
    ModelError,
    NotServingError,
    QueueFullError,
    RadixMeshError,
    RequestError,
)
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
    Snapshot,
    StartFailed,
    TakeSnapshot,
    Tokens,
)
from .output_collector import OutputState
from .output_stream import OutputStream
from .outputs import RequestOutput, TokenOutput
from .request import SamplingParams
from .request_builder import Prompt, RequestBuilder
from .runner import Backend, ModelInfo, RunnerCapacity
from .snapshot import GroupView
from .stats import EngineStats
from .text.tokenizer import LONG_PROMPT, Tokenizer, tokenizer_of

logger = logging.getLogger(__name__)


class AsyncLLM:
    """Generates text for many callers at once. All methods belong to one event loop.

    `info`, `tokenizer`, `capacity` and `choices` are there after `start`.
    """

    info: ModelInfo
    tokenizer: Tokenizer | None
    capacity: RunnerCapacity
    choices: tuple[Choice, ...]

    def __init__(self, config: EngineConfig, backend: Backend) -> None:
        self.config = config
        self.stats = EngineStats()  # newest snapshot, at most about half a second old while the loop runs
        self._backend = backend
        self._client: EngineClient | None = None
        self._builder: RequestBuilder
        self._streams: dict[str, OutputStream] = {}  # open requests by their callers' ids
        self._children: dict[str, tuple[OutputStream, OutputState]] = {}  # in the engine, by the engine's ids
        self._described: asyncio.Future[ModelInfo]
        self._ready: asyncio.Future[None]
        self._answers: dict[int, asyncio.Future[Any]] = {}  # that are waited for, by the call's number
        self._calls = itertools.count()
        self._turn = 0.0  # time.monotonic() of the loop's last sign of life
        self._fatal: str | None = None
        self._death: str | None = "it was not started"
        self._draining = False

    async def start(self) -> None:
        """Start the engine process and wait until the model is loaded and warm.

        Raises ConfigError or ModelError with the process's own message, EngineDeadError if it fails or
        dies otherwise. Nothing is left behind then.
        """
        if self._client is not None:
            raise RadixMeshError("the engine is started; accepted is one start")
        await self._launch(first=True)

    async def restart(self) -> None:
        """Start a new engine process in place of one that is gone. Raises what `start` raises."""
        if self.alive or self._client is None:
            raise RadixMeshError("the engine is there, or was never started; accepted is one that is gone")
        await self._client.close(kill=True)
        await self._launch(first=False)

    def kill(self, reason: str) -> None:
        """End an engine process that hangs; its requests end with EngineDeadError a moment later."""
        if self.alive and self._client is not None:
            self._fatal = reason
            self._client.kill()

    async def _launch(self, first: bool) -> None:
        """Start a process; the engine lives from the moment in which it is ready."""
        loop = asyncio.get_running_loop()
        self._described, self._ready = loop.create_future(), loop.create_future()
        self._fatal = None
        self._client = EngineClient(self._on_message, self._on_death)
        try:
            self._client.start(self.config, self._backend)
            self.info = await self._described
            if first:  # while weights load
                self.tokenizer = await asyncio.to_thread(tokenizer_of, self.config, self.info)
                self._builder = RequestBuilder(self.info, self.tokenizer, self.config.random_seed)
            await self._ready
        except BaseException:
            self._death = "it could not be started"
            _discard(self._described, self._ready)
            await self._client.close(kill=True)
            raise
        self._client.forget_folder()

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        extra_key: str = "",
    ) -> AsyncIterator[RequestOutput]:
        """Stream the outputs of one prompt; those of n > 1 sequences come mixed, told apart by `index`.

        Each sequence's last output has its `finish_reason`. A slow reader gets several steps' text in one
        output. Closing the iterator aborts the request. The first iteration raises RequestError for what
        is refused, QueueFullError, NotServingError while draining; any one EngineDeadError.
        """
        self._check_serving()
        name = request_id if request_id is not None else uuid.uuid4().hex
        if name in self._streams:
            raise RequestError(f"request_id {name!r} is in use; accepted is one of your own", "request_id")
        stream = self._streams[name] = OutputStream()
        try:
            await self._submit(stream, prompt, params, name, priority, extra_key)
            async for output in stream.outputs():
                yield output
        finally:
            del self._streams[name]
            self._drop(stream)

    async def _submit(
        self,
        stream: OutputStream,
        prompt: Prompt,
        params: SamplingParams,
        name: str,
        priority: int,
        extra_key: str,
    ) -> None:
        """Check the request and send it, unless it was aborted meanwhile."""
        build = partial(
            self._builder.build, prompt, params, request_id=name, priority=priority, extra_key=extra_key
        )
        is_long = hasattr(prompt, "__len__") and len(prompt) > LONG_PROMPT
        requests = await asyncio.to_thread(build) if is_long else build()
        self._check_alive()
        assert self._client is not None
        # the engine's ids never come again, so that late outputs of an aborted request are nobody else's
        by_id = {f"{request.id}@{next(self._calls)}": request for request in requests}
        stream.states = {key: OutputState(request, self.tokenizer) for key, request in by_id.items()}
        if stream.aborted:
            stream.abort()
            return
        for key, request in by_id.items():
            self._children[key] = (stream, stream.states[key])
            self._client.send(AddRequest.of(request, key))

    def _drop(self, stream: OutputStream) -> None:
        """Forget a stream; what the engine still does for it is aborted."""
        open_ids = [request_id for request_id in stream.states if self._children.pop(request_id, None)]
        if open_ids and self._client is not None and self._death is None:
            self._client.send(Abort(open_ids))

    async def abort(self, request_id: str | None) -> int:
        """End a request, or with None all; their streams end with FinishReason.ABORT. Returns how many."""
        ids = list(self._streams) if request_id is None else [request_id]
        found = [self._streams[each] for each in ids if each in self._streams]
        streams = [stream for stream in found if not stream.finished]
        for stream in streams:
            stream.abort()
            self._drop(stream)
        return len(streams)

    async def flush_cache(self) -> bool:
        """Empty the prefix cache. False, and nothing is done, while requests run."""
        flushed: Flushed = await self._ask(FlushCache(next(self._calls)))
        return flushed.done

    async def view(self) -> list[GroupView]:
        """What each data parallel group looks like between two steps; requests by their callers' ids."""
        snapshot: Snapshot = await self._ask(TakeSnapshot(next(self._calls)))
        for request in chain.from_iterable(group.requests for group in snapshot.groups):
            request.id = request.id.rpartition("@")[0]
        return snapshot.groups

    async def _ask(self, question: FlushCache | TakeSnapshot) -> Any:
        """The engine's answer, the message of the same number."""
        self._check_alive()
        assert self._client is not None
        answer = self._answers[question.call] = asyncio.get_running_loop().create_future()
        try:
            self._client.send(question)
            return await answer
        finally:
            del self._answers[question.call]

    @property
    def alive(self) -> bool:
        """Whether the engine process is there."""
        return self._client is not None and self._death is None

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine loop's last sign of life. Up to a second is usual."""
        return time.monotonic() - self._turn

    @property
    def num_open_requests(self) -> int:
        """Requests whose stream is not at its end; n sequences of one prompt are one."""
        return len(self._streams)

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine; None before the start and after the end."""
        return self._client.pid if self._client else None

    async def drain(self, timeout: float) -> None:
        """Take no more requests (NotServingError), wait `timeout` seconds for open ones, abort the rest."""
        self._draining = True
        end = time.monotonic() + timeout
        while self._streams and self.alive and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await self.abort(None)

    async def close(self) -> None:
        """End the engine process. Open streams end with EngineDeadError."""
        if self._client is None:
            return
        if self._death is None:
            self._end("it was closed")
        await self._client.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_alive(self) -> None:
        if self._death is not None or self._client is None:
            raise EngineDeadError(f"the engine is gone: {self._death}")

    def _check_serving(self) -> None:
        if self._draining:
            raise NotServingError("the engine is shutting down and takes no new requests")
        self._check_alive()

    def _on_message(self, message: FromEngine) -> None:
        match message:
            case Tokens():
                for output in message.outputs:
                    self._feed(output)
            case Heartbeat():
                self._turn, self.stats = message.turn, message.stats
            case Refused():
                self._refuse(message)
            case Flushed() | Snapshot():
                if message.call in self._answers:
                    _settle(self._answers[message.call], message)
            case Described():
                _settle(self._described, message.info)
            case Ready():
                self._live(message)
            case StartFailed():
                _fail(_start_error(message), self._described, self._ready)
            case Fatal():
                self._fatal = message.message

    def _live(self, message: Ready) -> None:
        self.capacity, self.choices = message.capacity, message.choices
        self._turn, self._death = time.monotonic(), None
        _settle(self._ready, None)

    def _feed(self, output: TokenOutput) -> None:
        stream, state = self._children.get(output.request_id, (None, None))
        if stream is None or state is None:
            return  # aborted meanwhile
        if output.refused:
            return self._refuse(Refused(output.request_id, output.error or "", None, QueueFullError.status))
        try:
            stream.put(state.feed(output))
        except Exception as error:  # ends this request alone
            logger.exception("the output of request %s could not be made into text", output.request_id)
            stream.fail(RequestError(f"the output could not be made into text: {error}", status=500))
            self._drop(stream)
            return
        if state.finished:
            del self._children[output.request_id]
        if state.ended_early and self._client is not None:
            self._client.send(Abort([output.request_id]))

    def _refuse(self, message: Refused) -> None:
        stream, _ = self._children.pop(message.request_id, (None, None))
        if stream is None:
            return
        stream.fail(_refusal(message, self.stats.queue_wait))
        self._drop(stream)

    def _on_death(self, reason: str) -> None:
        self._end(f"{reason}: {self._fatal}" if self._fatal else reason)

    def _end(self, reason: str) -> None:
        """Every open request ends with the engine."""
        self._death, self.stats = reason, EngineStats()
        error = EngineDeadError(f"the engine is gone: {reason}")
        _fail(error, self._described, self._ready, *self._answers.values())
        for stream in self._streams.values():
            stream.fail(EngineDeadError(f"the engine is gone: {reason}"))
        self._children.clear()


def _start_error(message: StartFailed) -> RadixMeshError:
    kinds: dict[str, type[RadixMeshError]] = {"ConfigError": ConfigError, "ModelError": ModelError}
    known = kinds.get(message.kind)
    return known(message.message) if known else EngineDeadError(f"the engine failed: {message.message}")


def _refusal(message: Refused, queue_wait: float) -> RequestError:
    kinds = {QueueFullError.status: QueueFullError, NotServingError.status: NotServingError}
    error = kinds.get(message.status, RequestError)(message.message, message.field, message.status)
    error.retry_after = queue_wait
    return error


def _settle(future: "asyncio.Future[Any]", value: object) -> None:
    if not future.done():
        future.set_result(value)


def _fail(error: Exception, *futures: "asyncio.Future[Any]") -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)


def _discard(*futures: "asyncio.Future[Any]") -> None:
    """Nobody will ask for their results."""
    for future in futures:
        if not future.cancel() and not future.cancelled():
            future.exception()
