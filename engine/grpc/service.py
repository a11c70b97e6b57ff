"""The calls of radixmesh.proto, over the same engine, guard and log as the HTTP routes."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc

from ..errors import RequestError
from ..outputs import RequestOutput
from ..server.admin import abort
from ..server.embeddings import check_pooling, unit_vector
from ..server.errors import CLIENT_GONE, describe
from ..server.generation import outputs, time_limit
from ..server.state import Server
from ..server.visit import Visit, begin_visit, current_visit
from .reading import generate_response, read_embed, read_generate, refuse_unknown
from .schema import SERVICE, messages

_TRACE = ("traceparent", "tracestate")
# what grpc.health.v1 asks is as open as /health
_OPEN = "/grpc.health.v1.Health/"
_WORK = frozenset({f"/{SERVICE}/Generate", f"/{SERVICE}/Embed"})  # what counts as a request of a key's limit

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Guarded(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call in, or ends it with the reason why not. Each call is a `Visit`."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The call's handler, or one that refuses it."""
        if details.method.startswith(_OPEN):
            return await continuation(details)
        metadata = [(name, value) for name, value in details.invocation_metadata if isinstance(value, str)]
        trace = {name: value for name, value in metadata if name in _TRACE}
        visit = Visit(method="gRPC", route=details.method, parent=trace)
        begin_visit(visit)
        try:
            headers = [(name.encode(), value.encode()) for name, value in metadata]
            self._server.guard.let_in(visit, headers, details.method, details.method in _WORK)
        except RequestError as error:
            return _refusing(self._server, error)
        return await continuation(details)


def handlers(server: Server) -> grpc.GenericRpcHandler:
    """The handlers of every call of radixmesh.proto."""
    made = messages()
    calls = {
        "Embed": _unary(server, "Embed", _embed),
        "Abort": _unary(server, "Abort", _abort),
        "GetModelInfo": _unary(server, "GetModelInfo", _model_info),
        "Generate": grpc.unary_stream_rpc_method_handler(
            _generating(server),
            made["GenerateRequest"].FromString,
            made["GenerateResponse"].SerializeToString,
        ),
    }
    return grpc.method_handlers_generic_handler(SERVICE, calls)


def _generating(server: Server) -> Callable[[Any, Any], AsyncGenerator[Any, None]]:
    response = messages()["GenerateResponse"]

    async def generate(request: Any, context: Any) -> AsyncGenerator[Any, None]:
        with _noted(server) as visit:
            try:
                job, begun = read_generate(server, request), set[int]()
                async with time_limit(server), aclosing(outputs(server, job)) as stream:
                    async for _, output in stream:
                        if output.new_token_ids or output.text_delta or output.finish_reason is not None:
                            yield response(**generate_response(output, output.index not in begun))
                            begun.add(output.index)
                visit.status = 200
            except Exception as error:
                await _end(context, visit, error)

    return generate


def _unary(server: Server, name: str, call: Callable[[Server, Any], Awaitable[dict[str, Any]]]) -> Any:
    made = messages()

    async def handle(request: Any, context: Any) -> Any:
        with _noted(server) as visit:
            try:
                refuse_unknown(request)
                answer = made[f"{name}Response"](**await call(server, request))
                visit.status = 200
                return answer
            except Exception as error:
                await _end(context, visit, error)

    return grpc.unary_unary_rpc_method_handler(
        handle, made[f"{name}Request"].FromString, made[f"{name}Response"].SerializeToString
    )


async def _embed(server: Server, request: Any) -> dict[str, Any]:
    check_pooling(server)
    dimensions = request.dimensions if request.HasField("dimensions") else None
    if dimensions == 0:
        raise RequestError("dimensions is 0; accepted is at least 1", "dimensions")
    last: RequestOutput | None = None
    async with time_limit(server), aclosing(outputs(server, read_embed(server, request))) as stream:
        async for _, output in stream:
            last = output
    vector = unit_vector(last.embedding if last else None, dimensions)
    return {"embedding": vector.tolist(), "prompt_tokens": last.num_prompt_tokens if last else 0}


async def _abort(server: Server, request: Any) -> dict[str, Any]:
    if not (request.request_id or request.abort_all):
        raise RequestError("accepted is one of request_id and abort_all true", "request_id")
    return {"aborted": await abort(server, None if request.abort_all else request.request_id)}


async def _model_info(server: Server, request: Any) -> dict[str, Any]:
    info = server.llm.info
    return {
        "name": info.name,
        "model_path": server.llm.config.model_path,
        "vocab_size": info.vocab_size,
        "context_length": info.context_length,
        "eos_token_ids": sorted(info.eos_token_ids),
        "takes_text": server.llm.tokenizer is not None,
    }


@contextmanager
def _noted(server: Server) -> Iterator[Visit]:
    """The visit of this call, which is counted and logged when it is over."""
    visit = current_visit()
    try:
        yield visit
    finally:
        visit.status = visit.status or CLIENT_GONE
        visit.ended = time.perf_counter()
        server.metrics.count_response(visit.route, visit.status)
        server.journal.note(visit)


async def _end(context: Any, visit: Visit, error: BaseException) -> None:
    """End the call with what is told of `error`."""
    fault = describe(error)
    visit.status = fault.status
    default = grpc.StatusCode.INTERNAL if fault.status >= 500 else grpc.StatusCode.INVALID_ARGUMENT
    await context.abort(_CODES.get(fault.status, default), fault.message)


def _refusing(server: Server, error: RequestError) -> Any:
    """A handler that ends any call with `error`."""

    async def refuse(requests: Any, context: Any) -> None:
        with _noted(server) as visit:
            await _end(context, visit, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
