"""Prometheus metrics: `radixmesh:` names after SGLang's. Each server has a registry of its own.

The engine's gauges and counters are read from its newest statistics when Prometheus asks; only what
the server alone sees (latencies, finish reasons, responses) is recorded as it happens.
"""

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..outputs import RequestOutput
from ..stats import EngineStats
from .recent import Recent

PREFIX = "radixmesh:"

_TTFT_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120,
)  # fmt: skip
_ITL_BUCKETS = (
    0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3, 0.5, 0.75, 1, 2, 5,
)  # fmt: skip
_E2E_BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 90, 120, 240, 480, 960)


class Metrics:
    """What the server records. `watch_engine` adds what the engine counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.recent_ttft, self.recent_itl = Recent(), Recent()
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "from arrival to the first token", _TTFT_BUCKETS
        )
        self._queue = self._histogram("queue_time_seconds", "from arrival to the first step", _TTFT_BUCKETS)
        self._itl = self._histogram(
            "inter_token_latency_seconds", "between one token and the next", _ITL_BUCKETS
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "from arrival to the last token", _E2E_BUCKETS
        )
        self._requests = Counter(
            PREFIX + "num_requests",
            "sequences that ended, by reason",
            ["finish_reason"],
            registry=self.registry,
        )
        self._responses = Counter(
            PREFIX + "http_responses", "HTTP responses", ["route", "status"], registry=self.registry
        )
        self._restarts = Counter(
            PREFIX + "engine_restarts", "engine processes started because one ended", registry=self.registry
        )

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, help, buckets=buckets, registry=self.registry)

    def watch_engine(self, stats: Callable[[], EngineStats]) -> None:
        """Show the engine's own figures too; `stats` is called at each scrape."""
        self.registry.register(_EngineCollector(stats))

    def count_response(self, route: str, status: int) -> None:
        """Count an HTTP response; status 0 is one that never began."""
        self._responses.labels(route, str(status)).inc()

    def count_restart(self) -> None:
        """Count an engine process that is started because the one before ended."""
        self._restarts.inc()

    def clock(self) -> "RequestClock":
        """Start timing one prompt's sequences."""
        return RequestClock(self)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class RequestClock:
    """Times one prompt's n sequences, from its making."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.perf_counter()
        self._last: dict[int, float] = {}  # sequence index -> time of its newest token

    def saw(self, output: RequestOutput) -> None:
        """Record an output as it comes from the engine."""
        now = time.perf_counter()
        count = len(output.new_token_ids)
        if count:
            last = self._last.get(output.index)
            if last is None:
                self._metrics._ttft.observe(now - self._started)
                self._metrics._queue.observe(output.queue_seconds)
                self._metrics.recent_ttft.add(now - self._started)
            else:  # several tokens at once share the wait evenly
                for _ in range(count):
                    self._metrics._itl.observe((now - last) / count)
                self._metrics.recent_itl.add((now - last) / count, count)
            self._last[output.index] = now
        if output.finish_reason is not None:
            self._metrics._e2e.observe(now - self._started)
            self._metrics._requests.labels(output.finish_reason.value).inc()


class _EngineCollector(Collector):
    """Turns `EngineStats` into metric families when asked."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry must not scrape at registration: there may be no figures yet

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        hit_rate = stats.cached_tokens / stats.prompt_tokens if stats.prompt_tokens else 0.0
        kept = stats.evictable_pages
        held = stats.num_pages - stats.free_pages - kept
        gauges: tuple[tuple[str, str, float], ...] = (
            ("num_running_reqs", "requests in the running batch", stats.num_running),
            ("num_queue_reqs", "requests that wait", stats.num_waiting),
            ("queue_wait_seconds", "expected wait of a new request", stats.queue_wait),
            ("token_usage", "share of the KV pool in use by running requests", stats.token_usage),
            ("num_used_tokens", "KV pool tokens that running requests hold", held * stats.page_size),
            (
                "num_evictable_tokens",
                "KV pool tokens kept for later",
                kept * stats.page_size,
            ),
            ("max_total_num_tokens", "KV pool size in tokens", stats.num_pages * stats.page_size),
            ("cache_hit_rate", "share of all prompt tokens found in the cache", hit_rate),
        )
        counters: tuple[tuple[str, str, float], ...] = (
            ("prompt_tokens", "prompt tokens admitted", stats.prompt_tokens),
            ("cached_tokens", "prompt tokens found in the cache", stats.cached_tokens),
            ("generation_tokens", "tokens generated", stats.generation_tokens),
            ("constrained_tokens", "tokens sampled under a grammar's mask", stats.constrained_tokens),
            ("forced_tokens", "tokens that a grammar dictated, sampled by no step", stats.forced_tokens),
            ("mask_seconds", "seconds of the host that masks took", stats.mask_seconds),
            ("num_preemptions", "running requests sent back to the queue", stats.preemptions),
            ("num_aborted_requests", "sequences aborted", stats.aborted),
            ("engine_steps", "steps of the engine", stats.steps),
            ("step_failures", "steps that failed, and ended their requests", stats.step_failures),
            ("integrity_violations", "page accounting faults found and repaired", stats.integrity_violations),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(PREFIX + name, text, value)
        for name, text, value in counters:
            yield CounterMetricFamily(PREFIX + name, text, value)
