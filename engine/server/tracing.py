"""OpenTelemetry: one span for each HTTP request, sent to a collector over OTLP/HTTP by a thread of the SDK.

Names are those of OpenTelemetry's conventions for HTTP and generative AI where they have one.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:  # the options check an endpoint without loading a server
    from .visit import Visit

_ENDPOINT = re.compile(r"https?://[^/\s@]+(/\S*)?")
_GOODBYE = 3.0  # seconds that the last spans have
_PATH = "/v1/traces"  # of a collector, where the endpoint names none

Attributes = Mapping[str, str | int | float | Sequence[str]]


def check_endpoint(endpoint: str) -> None:
    """Raise ConfigError unless spans can be sent to `endpoint`."""
    if not _ENDPOINT.fullmatch(endpoint):
        raise ConfigError(
            f"otlp_traces_endpoint is {endpoint!r}; accepted is an OTLP/HTTP address such as"
            " http://localhost:4318/v1/traces"
        )
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"otlp_traces_endpoint needs the extra otel, and {error.name} is not installed; accepted is to"
            " run pip install 'radixmesh[otel]', or to leave the option out"
        ) from None


class Tracer:
    """Sends what it is told to `endpoint`; a collector that is away costs spans, never requests."""

    def __init__(self, endpoint: str, model: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        found = _ENDPOINT.fullmatch(endpoint)
        exporter = OTLPSpanExporter(endpoint if found and found[1] else endpoint + _PATH)
        resource = Resource.create({"service.name": "radixmesh"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("radixmesh.server")
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def note(self, visit: "Visit") -> None:
        """Send a span of `visit`, which has ended: a child of the caller's, if it named one."""
        from opentelemetry.trace import SpanKind, StatusCode

        span = self._tracer.start_span(
            f"{visit.method} {visit.route}",
            context=self._propagator.extract(visit.parent),
            kind=SpanKind.SERVER,
            attributes=span_attributes(visit, self._model),
            start_time=visit.wall_ns,
        )
        if visit.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(visit.wall_ns + int(visit.total * 1e9))

    def close(self) -> None:
        """Send what is left, for a few seconds at most: the SDK would try for half a minute."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_GOODBYE)


def span_attributes(visit: "Visit", model: str) -> Attributes:
    """What a span tells. Times are in seconds; prefill is from the end of the queue to the first token,
    decode from there to the end."""
    told: dict[str, str | int | float | Sequence[str]] = {
        "http.request.method": visit.method,
        "http.route": visit.route,
        "http.response.status_code": visit.status,
    }
    if visit.key_name is not None:
        told["radixmesh.key"] = visit.key_name
    if visit.id:
        told |= {
            "gen_ai.request.model": model,
            "gen_ai.response.id": visit.id,
            "gen_ai.response.finish_reasons": tuple(visit.finish_reasons),
            "gen_ai.usage.input_tokens": visit.prompt_tokens,
            "gen_ai.usage.output_tokens": visit.output_tokens,
            "radixmesh.cached_tokens": visit.cached_tokens,
            "gen_ai.latency.e2e": visit.total,
        }
    if visit.first_token is not None and visit.queued is not None:
        told |= {
            "gen_ai.latency.time_in_queue": visit.queued,
            "gen_ai.latency.time_to_first_token": visit.first_token,
            "gen_ai.latency.time_in_model_prefill": visit.first_token - visit.queued,
            "gen_ai.latency.time_in_model_decode": visit.total - visit.first_token,
        }
    return told
