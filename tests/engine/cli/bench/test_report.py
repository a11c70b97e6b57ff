"""The metrics against numbers worked out by hand."""

import json
from pathlib import Path

import pytest

from radixmesh.engine.cli.bench.report import (
    RequestRecord,
    print_report,
    summarize,
    to_json,
    totals,
    write_json,
)
from radixmesh.engine.errors import ConfigError

# Sent at 10.0 s; pieces of 1, 2 and 1 tokens at 10.5, 10.7 and 11.1 s:
# TTFT 0.5, gaps 0.2 and 0.4, TPOT 0.6 / 3 = 0.2, latency 1.1.
FIRST = RequestRecord(
    start=10.0, arrivals=[10.5, 10.7, 11.1], arrived_tokens=[1, 2, 1], end=11.1, prompt_tokens=7,
    cached_tokens=4,
)  # fmt: skip
# Sent at 10.2 s, one token at 11.2 s: TTFT 1.0, no gap, no TPOT, latency 1.0.
SECOND = RequestRecord(start=10.2, arrivals=[11.2], arrived_tokens=[1], end=11.2, prompt_tokens=3)
FAILED = RequestRecord(start=10.0, end=12.0, error="status 429", prompt_tokens=100)


def test_one_request() -> None:
    assert FIRST.output_tokens == 4
    assert FIRST.ttft == pytest.approx(0.5)
    assert FIRST.latency == pytest.approx(1.1)
    assert FIRST.tpot == pytest.approx(0.2)
    assert SECOND.tpot is None


def test_tokens_that_came_with_the_first_are_not_after_it() -> None:
    record = RequestRecord(start=0.0, arrivals=[1.0, 2.0], arrived_tokens=[3, 4], end=2.0)
    assert record.tpot == pytest.approx(0.25)
    assert RequestRecord(start=0.0, arrivals=[1.0], arrived_tokens=[3], end=1.0).tpot is None


def test_summary_of_two_requests_and_a_failed_one() -> None:
    report = summarize([FIRST, SECOND, FAILED], duration=2.0)
    assert (report.completed, report.failed, report.errors) == (2, 1, ("status 429",))
    assert (report.total_input_tokens, report.total_output_tokens, report.total_cached_tokens) == (10, 5, 4)
    assert report.request_throughput == 1.0
    assert report.input_throughput == 5.0
    assert report.output_throughput == 2.5
    assert report.total_token_throughput == 7.5
    # Seconds since 10.0: pieces at 0.5 and 0.7 (3 tokens), then at 1.1 and 1.2 (2 tokens).
    assert report.peak_output_throughput == 3.0
    assert report.peak_concurrent_requests == 2
    assert report.concurrency == pytest.approx((1.1 + 1.0) / 2.0)
    assert report.ttft and report.tpot and report.itl and report.e2e_latency
    assert report.ttft.mean == pytest.approx(750)
    assert report.ttft.median == pytest.approx(750)
    assert report.ttft.std == pytest.approx(250)
    assert report.ttft.p99 == pytest.approx(500 + 0.99 * 500)
    assert report.tpot.mean == pytest.approx(200)
    assert report.itl.mean == pytest.approx(300)
    assert report.itl.p99 == pytest.approx(200 + 0.99 * 200)
    assert report.e2e_latency.median == pytest.approx(1050)


def test_requests_that_follow_each_other_are_never_open_together() -> None:
    second = RequestRecord(start=11.1, arrivals=[11.5], arrived_tokens=[1], end=11.5)
    assert summarize([FIRST, second], duration=2.0).peak_concurrent_requests == 1


def test_nothing_succeeded() -> None:
    report = summarize([FAILED, RequestRecord(start=0.0, end=1.0)], duration=1.0)
    assert (report.completed, report.failed) == (0, 2)
    assert report.errors == ("status 429", "no token came back")
    assert report.ttft is None and report.peak_concurrent_requests is None


def test_printed_names_are_the_peers(capsys: pytest.CaptureFixture[str]) -> None:
    print_report("Serving Benchmark Result", summarize([FIRST, SECOND, FAILED], duration=2.0))
    lines = capsys.readouterr().out.splitlines()
    for start, value in [
        ("Successful requests:", "2"),
        ("Benchmark duration (s):", "2.00"),
        ("Total input tokens:", "10"),
        ("Total generated tokens:", "5"),
        ("Request throughput (req/s):", "1.00"),
        ("Output token throughput (tok/s):", "2.50"),
        ("Peak output token throughput (tok/s):", "3.00"),
        ("Total token throughput (tok/s):", "7.50"),
        ("Mean TTFT (ms):", "750.00"),
        ("Median TPOT (ms):", "200.00"),
        ("P99 ITL (ms):", "398.00"),
        ("Mean E2E Latency (ms):", "1050.00"),
    ]:
        [line] = [line for line in lines if line.startswith(start)]
        assert line.split()[-1] == value
    assert lines[-1] == "failed: status 429"


def test_json_has_flat_names(tmp_path: Path) -> None:
    write_json(str(tmp_path / "out.json"), to_json(summarize([FIRST, SECOND], duration=2.0)))
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["output_throughput"] == 2.5
    assert values["mean_ttft_ms"] == pytest.approx(750)
    assert values["p99_itl_ms"] == pytest.approx(398)
    assert values["median_e2e_latency_ms"] == pytest.approx(1050)
    assert values["std_tpot_ms"] == 0


def test_json_without_latencies_leaves_them_out() -> None:
    values = to_json(totals(completed=1, duration=4.0, input_tokens=2, output_tokens=6))
    assert values["output_throughput"] == 1.5
    assert not [name for name in values if name.endswith("_ms") or name == "ttft"]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such"):
        write_json(str(tmp_path / "no such" / "x.json"), {})
