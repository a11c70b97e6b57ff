"""Options that belong together."""

from typing import Any

import pytest

from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError

ADDRESS = "10.0.0.1:29500"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"node_rank": 1}, "node_rank is 1; accepted is 0 to 0"),
        ({"nnodes": 2, "node_rank": 2, "dist_init_addr": ADDRESS, "tp_size": 2}, "accepted is 0 to 1"),
        ({"nnodes": 0}, "nnodes is 0"),
        ({"nnodes": 2, "tp_size": 2}, "nnodes is 2 and dist_init_addr is None"),
        ({"dist_init_addr": ADDRESS}, f"nnodes is 1 and dist_init_addr is '{ADDRESS}'"),
        ({"nnodes": 2, "dist_init_addr": "10.0.0.1", "tp_size": 2}, "accepted is HOST:PORT"),
        ({"nnodes": 2, "dist_init_addr": ":29500", "tp_size": 2}, "accepted is HOST:PORT"),
        ({"nnodes": 2, "dist_init_addr": "10.0.0.1:65535", "tp_size": 2}, "accepted is HOST:PORT"),
        ({"nnodes": 2, "dist_init_addr": ADDRESS, "tp_size": 3}, "accepted is a divisor of .* = 3"),
    ],
)
def test_options_of_several_hosts_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EngineConfig(**options)


def test_options_of_several_hosts_that_fit() -> None:
    config = EngineConfig(nnodes=4, node_rank=3, dist_init_addr="[fd00::1]:29500", tp_size=8)
    assert (config.nnodes, config.node_rank) == (4, 3)
