"""From a checked HTTP request to the engine's outputs: batches, time limits, clients that leave."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args

from starlette.types import Receive

from ..errors import RequestError
from ..grammar.grammar import GrammarKind
from ..outputs import RequestOutput
from ..request import FinishReason, SamplingParams
from .errors import ClientGoneError, GenerationError, RequestTimeoutError
from .state import Server
from .visit import current_visit

T = TypeVar("T")
_Waiting = tuple[tuple[int, RequestOutput], asyncio.Event]  # what came of a stream; set when it was taken


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request's work: P prompts, each with its parameters."""

    prompts: list[str | list[int]]  # P texts or lists of token ids
    params: list[SamplingParams]  # P
    id: str  # the engine's, or what the P ids of the engine begin with
    field: str = "prompt"  # what the client calls the prompts
    fields: tuple[str, ...] = ()  # P, where it calls each by a name of its own
    sampling_field: str = ""  # the object that has the sampling parameters, where it is not the body
    priority: int = 0
    extra_key: str = ""
    id_field: str = "rid"  # what the client calls the id
    ids: tuple[str, ...] = ()  # P, where the client named each prompt
    # engine's name of a field -> the client's, where it is at another place than `sampling_field`
    names: Mapping[str, str] | None = None
    grammar_field: str = ""  # what the client calls the grammar, where it is not its kind

    @property
    def num_sequences(self) -> int:
        return sum(each.n for each in self.params)

    def prompt_id(self, index: int) -> str:
        """The id that one prompt has in the engine."""
        if self.ids:
            return self.ids[index]
        return self.id if len(self.prompts) == 1 else f"{self.id}_{index}"


async def outputs(server: Server, job: Job) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """(prompt index, output) as they come, of all prompts together.

    Closing it aborts what still runs. Raises RequestError, EngineDeadError.
    """
    server.check_serving()
    capacity = server.llm.capacity
    most = capacity.num_groups * (server.llm.config.max_queued_requests + capacity.max_running_requests)
    if job.num_sequences > most:
        raise RequestError(
            f"the request asks for {job.num_sequences} sequences, all prompts and n together;"
            f" at most {most} are accepted"
        )
    current_visit().admit(job.id, job.prompts)
    streams = [_one(server, job, index) for index in range(len(job.prompts))]
    merged = streams[0] if len(streams) == 1 else _merge(streams)
    async with aclosing(merged):
        async for item in merged:
            yield item


async def _one(server: Server, job: Job, index: int) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    clock, visit, name = server.metrics.clock(), current_visit(), job.prompt_id(index)
    is_new = server.visits.setdefault(name, visit) is visit
    stream = server.llm.generate(
        job.prompts[index],
        job.params[index],
        request_id=name,
        priority=job.priority,
        extra_key=job.extra_key,
    )
    try:
        async with aclosing(cast(AsyncGenerator[RequestOutput, None], stream)):
            async for output in stream:
                clock.saw(output)
                visit.saw(index, output)
                if output.finish_reason is FinishReason.ERROR:
                    raise GenerationError(output.error or "the engine could not finish this request")
                yield index, output
    except RequestError as error:
        visit.refused(index)
        raise _in_clients_words(error, job, index) from None
    finally:
        if is_new:
            del server.visits[name]


def _in_clients_words(error: RequestError, job: Job, index: int) -> RequestError:
    """`error`, of prompt `index`, with the field's name in the request, where the engine's differs."""
    if error.field == "prompt" and job.fields:
        name = job.fields[index]
        return RequestError(f"{name}: {error}", name, error.status)
    if error.field == "prompt":
        error.field = job.field
    elif error.field == "request_id":
        name = job.id_field
        return RequestError(str(error).replace("request_id", name, 1), name, error.status)
    elif error.field and job.names and error.field in job.names:
        name = job.names[error.field]
        return RequestError(str(error).replace(error.field, name, 1), name, error.status)
    elif error.field and error.field in get_args(GrammarKind) and job.grammar_field:
        text = str(error).replace(error.field, job.grammar_field, 1)
        return RequestError(text, job.grammar_field, error.status)
    elif error.field and job.sampling_field:
        path = f"{job.sampling_field}.{error.field}"
        return RequestError(str(error).replace(error.field, path, 1), path, error.status)
    return error


async def _merge(
    streams: list[AsyncGenerator[tuple[int, RequestOutput], None]],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """The items of all streams in the order of their coming; the first error ends all.

    Of each stream one item waits for a slow reader; the rest stays with the engine's streams, which merge it.
    """
    queue: asyncio.Queue[_Waiting | Exception | None] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[tuple[int, RequestOutput], None]) -> None:
        taken = asyncio.Event()
        try:
            async with aclosing(stream):
                async for item in stream:
                    taken.clear()
                    queue.put_nowait((item, taken))
                    await taken.wait()
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                output, taken = item
                taken.set()
                yield output
    finally:
        await _cancel(*tasks)


async def collect(
    server: Server, receive: Receive, job: Job, saw: Callable[[RequestOutput], None] | None = None
) -> list[list[RequestOutput]]:
    """The final outputs, [P][n]; `saw` is told of each output as it comes.

    Raises ClientGoneError, after aborting, when the client leaves.
    """

    async def work() -> list[list[RequestOutput]]:
        final: list[list[Any]] = [[None] * params.n for params in job.params]
        async with time_limit(server), aclosing(outputs(server, job)) as stream:
            async for index, output in stream:
                final[index][output.index] = output
                if saw is not None:
                    saw(output)
        return final

    return await until_gone(receive, work())


@asynccontextmanager
async def time_limit(server: Server) -> AsyncIterator[None]:
    """Raise RequestTimeoutError in the body when `request_timeout` is over."""
    limit = server.options.request_timeout
    try:
        async with asyncio.timeout(limit) as scope:
            yield
    except TimeoutError:
        if limit is None or not scope.expired():
            raise
        raise RequestTimeoutError(
            f"the request was not finished within request_timeout, {limit:g} s, and was aborted"
        ) from None


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; it is cancelled, and ClientGoneError raised, when the client leaves first.

    The request's body must have been read: after it, `receive` only tells of the client's leaving.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        await _cancel(task, gone)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
