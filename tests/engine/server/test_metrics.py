"""Metrics without a server: what a scrape says of known figures."""

from prometheus_client.parser import text_string_to_metric_families

from radixmesh.engine.outputs import RequestOutput
from radixmesh.engine.request import FinishReason
from radixmesh.engine.server.metrics import Metrics
from radixmesh.engine.stats import EngineStats


def scrape(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        sample.name.removeprefix("radixmesh:") + "".join(f" {value}" for value in sample.labels.values()): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }


def test_engine_figures_are_read_at_each_scrape() -> None:
    stats = EngineStats(
        num_running=3, num_waiting=4, page_size=16, num_pages=100, free_pages=50, evictable_pages=20,
        token_usage=0.3, prompt_tokens=1000, cached_tokens=250, generation_tokens=70, preemptions=2,
    )  # fmt: skip
    metrics = Metrics()
    metrics.watch_engine(lambda: stats)
    first = scrape(metrics)
    assert first["num_running_reqs"] == 3 and first["num_queue_reqs"] == 4
    assert first["max_total_num_tokens"] == 1600 and first["num_used_tokens"] == 480
    assert first["num_evictable_tokens"] == 320 and first["token_usage"] == 0.3
    assert first["cache_hit_rate"] == 0.25 and first["num_preemptions_total"] == 2
    assert first["prompt_tokens_total"] == 1000 and first["cached_tokens_total"] == 250
    stats.generation_tokens = 71
    assert scrape(metrics)["generation_tokens_total"] == 71


def test_a_clock_counts_first_tokens_gaps_and_ends() -> None:
    metrics = Metrics()
    clock = metrics.clock()
    for count in (1, 1, 3):  # three tokens at once are three gaps
        clock.saw(RequestOutput(request_id="a", index=0, new_token_ids=[7] * count))
    clock.saw(RequestOutput(request_id="a", index=1, new_token_ids=[7], queue_seconds=2.5))
    clock.saw(RequestOutput(request_id="a", index=0, finish_reason=FinishReason.STOP))
    clock.saw(RequestOutput(request_id="a", index=1, finish_reason=FinishReason.ABORT))
    got = scrape(metrics)
    assert got["time_to_first_token_seconds_count"] == 2
    assert got["queue_time_seconds_count"] == 2 and got["queue_time_seconds_sum"] == 2.5
    assert got["inter_token_latency_seconds_count"] == 4
    assert got["e2e_request_latency_seconds_count"] == 2
    assert got["num_requests_total stop"] == got["num_requests_total abort"] == 1


def test_two_servers_in_one_process_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.count_response("/generate", 200)
    assert "http_responses_total /generate 200" in scrape(one)
    assert "http_responses_total /generate 200" not in scrape(two)
