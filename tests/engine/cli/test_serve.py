"""`radixmesh serve` over several hosts: who follows, and who is told to."""

from typing import Any

import pytest

from radixmesh.engine.cli.joints import Hosts, Joints
from radixmesh.engine.cli.main import main
from radixmesh.engine.config import EngineConfig


class Reached(Exception):
    """Where `serve` goes next, and with which config."""


def joints(hosts: Hosts | None) -> Joints:
    def unused(*arguments: Any) -> Any:
        raise AssertionError("it should not be called")

    def follow(config: EngineConfig) -> Any:
        raise Reached("follow", config)

    def find_backend(config: EngineConfig) -> Any:
        raise Reached("serve", config)

    return Joints(
        version="9.9", find_backend=find_backend, survey=unused, convert=unused, plan=unused,
        slice_hosts=lambda: hosts, follow=follow,
    )  # fmt: skip


def reached(flags: str, hosts: Hosts | None = None) -> tuple[Any, ...]:
    with pytest.raises(Reached) as found:
        main(["serve", "--port", "1", *flags.split()], joints(hosts))
    return found.value.args


SLICE = Hosts(1, ("10.0.0.1", "10.0.0.2"))


def test_a_host_that_is_not_the_first_follows() -> None:
    flags = "--tp-size 4 --nnodes 2 --node-rank 1 --dist-init-addr 10.0.0.9:29500"
    config = EngineConfig(tp_size=4, nnodes=2, node_rank=1, dist_init_addr="10.0.0.9:29500")
    assert reached(flags) == reached(flags, SLICE) == ("follow", config)


def test_the_same_command_on_every_host_of_a_slice(capsys: pytest.CaptureFixture[str]) -> None:
    config = EngineConfig(tp_size=8, nnodes=2, node_rank=1, dist_init_addr="10.0.0.1:20000")
    assert reached("--tp-size 8", SLICE) == ("follow", config)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "radixmesh: nnodes=2 because: the TPU slice has so many hosts"
    assert [line.split(" because")[0] for line in said[1:]] == [
        "radixmesh: node_rank=1", "radixmesh: dist_init_addr=10.0.0.1:20000",
    ]  # fmt: skip
    where, first = reached("--tp-size 8", Hosts(0, SLICE.addresses))
    assert (where, first.node_rank, first.nnodes) == ("serve", 0, 2)


@pytest.mark.parametrize("flags", ["--nnodes 1", "--backend fake"])
def test_a_slice_is_not_asked_for(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    where, config = reached(flags, SLICE)
    assert (where, config.nnodes) == ("serve", 1)
    assert capsys.readouterr().err == ""


def test_one_host() -> None:
    assert reached("") == ("serve", EngineConfig())


def test_devices_that_do_not_split_over_the_slice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"], joints(SLICE)) == 2
    assert "nnodes is 2; accepted is a divisor of tp_size x dp_size = 1" in capsys.readouterr().err
