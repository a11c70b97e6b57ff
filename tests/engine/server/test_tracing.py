"""Spans, as a collector gets them over HTTP."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from radixmesh.engine.errors import ConfigError
from radixmesh.engine.server.options import ServerOptions

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes what is posted to /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: set[str] = set()
        self.spans: list[Any] = []


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            data = gzip.decompress(data)
        sent = ExportTraceServiceRequest.FromString(data)
        self.server.paths.add(self.path)
        for resource in sent.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def attributes(span: Any) -> dict[str, Any]:
    kinds = {"string_value": str, "int_value": int, "double_value": float}
    found = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        found[each.key] = (
            [item.string_value for item in each.value.array_value.values]
            if kind == "array_value"
            else kinds[kind](getattr(each.value, kind))
        )
    return found


def test_each_request_is_a_span_with_its_times(start: Any, collector: Collector) -> None:
    """Two requests where one runs at a time: the second one's wait is in its span."""
    options = {
        "otlp_traces_endpoint": f"http://127.0.0.1:{collector.server_port}",
        "api_key": ("sesame",),
    }
    server = start({"max_running_requests": 1, "context_length": 4000}, options)
    body = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 1500, "ignore_eos": True}}

    def ask(rid: str) -> None:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-api-key": "sesame"}
        answer = httpx.post(server.url + "/generate", json={**body, "rid": rid}, headers=headers, timeout=60)
        assert answer.status_code == 200

    threads = [threading.Thread(target=ask, args=(rid,)) for rid in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert httpx.get(server.url + "/health").status_code == 200
    assert httpx.get(server.url + "/v1/models").status_code == 401
    server.process.terminate()
    assert server.process.wait(20) == 0  # what was not sent yet is sent at the end
    assert collector.paths == {"/v1/traces"}
    spans = sorted(
        (each for each in collector.spans if each.name == "POST /generate"),
        key=lambda each: each.end_time_unix_nano,
    )
    assert len(spans) == 2 and len(collector.spans) == 3  # none of /health
    first, second = (attributes(each) for each in spans)
    for span, told in zip(spans, (first, second), strict=True):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert told["gen_ai.response.id"] in "ab" and told["gen_ai.request.model"] == "fake"
        assert told["gen_ai.usage.input_tokens"] == 3 and told["gen_ai.usage.output_tokens"] == 1500
        assert told["gen_ai.response.finish_reasons"] == ["length"]
        assert told["http.response.status_code"] == 200 and told["radixmesh.key"] == "key-1"
        total = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        parts = ("queue", "model_prefill", "model_decode")
        assert sum(told[f"gen_ai.latency.time_in_{each}"] for each in parts) == pytest.approx(total, abs=1e-3)
        assert told["gen_ai.latency.e2e"] == pytest.approx(total, abs=1e-3)
    decode = first["gen_ai.latency.time_in_model_decode"]
    assert first["gen_ai.latency.time_in_queue"] < decode / 4
    assert second["gen_ai.latency.time_in_queue"] > decode / 2
    (refused,) = (attributes(each) for each in collector.spans if each.name.startswith("GET"))
    assert refused["http.response.status_code"] == 401 and "gen_ai.response.id" not in refused


def test_a_collector_that_is_away_costs_nobody_an_answer(start: Any) -> None:
    server = start(options={"otlp_traces_endpoint": "http://127.0.0.1:9/v1/traces"})
    assert httpx.get(server.url + "/v1/models").status_code == 200
    server.process.terminate()
    assert server.process.wait(30) == 0


@pytest.mark.parametrize("endpoint", ["", "localhost:4317", "grpc://a:4317", "http://user:secret@a:1/v1"])
def test_an_address_that_spans_cannot_go_to_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="^otlp_traces_endpoint is .* accepted is an OTLP/HTTP address"):
        ServerOptions(otlp_traces_endpoint=endpoint)


def test_without_the_packages_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"opentelemetry.sdk.trace is not installed.*radixmesh\[otel\]"):
        ServerOptions(otlp_traces_endpoint="http://localhost:4318")
