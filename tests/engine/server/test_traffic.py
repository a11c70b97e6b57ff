"""A thousand good, bad and abandoned requests at once; then every page is accounted for."""

from typing import Any

import httpx
import pytest

from tests.traffic import Traffic, settled_stats


@pytest.mark.slow
def test_a_thousand_mixed_requests_leave_nothing_behind(start: Any) -> None:
    # A pool so small that requests are preempted, and the cache evicted.
    server = start({"context_length": 512, "max_total_tokens": 512, "max_running_requests": 16})
    outcomes = Traffic(server.url).run()
    assert outcomes.keys() == {"ok", "refused", "left", "aborted"} and min(outcomes.values()) > 100
    stats = settled_stats(server.url)
    assert stats["num_pages"] == 32
    assert stats["preemptions"] > 0 and stats["aborted"] > 0 and stats["cached_tokens"] > 0
    counted = httpx.get(server.url + "/metrics").text
    assert 'status="499"' in counted and 'status="0"' not in counted
    assert httpx.get(server.url + "/health_generate").status_code == 200
    # Now that nothing runs, the cache gives every page back.
    assert httpx.post(server.url + "/flush_cache").status_code == 200
    assert "Traceback" not in server.text()
