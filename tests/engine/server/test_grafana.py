"""docs/grafana-dashboard.json asks for metrics that /metrics has, and shows all but those named here."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.running import Running

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "docs/grafana-dashboard.json").read_text()
)
# what /metrics has and the dashboard leaves out, with the reason
LEFT_OUT = {
    "cache_hit_rate": "since the start; the dashboard shows the rate of now, from two counters",
}


def expressions() -> list[str]:
    """Every query of the dashboard, of panels and of variables."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return panels + [
        each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"
    ]


def test_the_dashboard_matches_the_metrics(server: Running) -> None:
    body = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 3, "temperature": 0}}
    assert httpx.post(server.url + "/generate", json=body).status_code == 200
    families = list(text_string_to_metric_families(httpx.get(server.url + "/metrics").text))
    samples = {sample.name for family in families for sample in family.samples}
    labels = {name for family in families for sample in family.samples for name in sample.labels}
    asked = {name for each in expressions() for name in re.findall(r"radixmesh:\w+", each)}
    assert len(asked) > 10
    assert not asked - samples, "the dashboard asks for metrics that the server does not have"
    grouped = {name for each in expressions() for name in re.findall(r"by \((\w+)\)", each)}
    assert not grouped - labels
    shown = {re.sub(r"_(total|bucket)$", "", name.removeprefix("radixmesh:")) for name in asked}
    known = {family.name.removeprefix("radixmesh:") for family in families}
    # beside each counter and histogram the client library tells when it began
    known -= {name for name in known if name.removesuffix("_created") in known - {name}}
    assert len(known) > 20
    assert known - shown == set(LEFT_OUT), "the dashboard does not show them"


def test_the_dashboard_is_whole() -> None:
    """Panels lie beside each other, each with an id of its own, and ask the data source that was chosen."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count("(") == target["expr"].count(")")
