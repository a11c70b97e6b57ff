"""`radixmesh serve` on a host that is not the first."""

from typing import Any

import pytest

from radixmesh.engine.cli.joints import Joints
from radixmesh.engine.cli.main import main
from radixmesh.engine.config import EngineConfig


def unused(*arguments: Any) -> Any:
    raise AssertionError("only follow should be called")


def test_it_follows_process_0() -> None:
    asked: list[EngineConfig] = []

    def follow(config: EngineConfig) -> Any:
        asked.append(config)
        raise SystemExit(0)

    joints = Joints(
        version="9.9", find_backend=unused, survey=unused, convert=unused, plan=unused, follow=follow
    )
    flags = "--tp-size 4 --nnodes 2 --node-rank 1 --dist-init-addr 10.0.0.1:29500".split()
    with pytest.raises(SystemExit):
        main(["serve", "--port", "1", *flags], joints)
    options: dict[str, Any] = dict(tp_size=4, nnodes=2, node_rank=1, dist_init_addr="10.0.0.1:29500")
    assert asked == [EngineConfig(**options)]
