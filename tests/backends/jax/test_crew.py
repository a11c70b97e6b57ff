"""Processes that meet, agree, and end together. The others here are threads, or processes without jax."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from radixmesh.backends.jax import crew
from radixmesh.backends.jax.crew import Crew, Kind, meet
from radixmesh.engine.errors import ConfigError

SRC = Path(__file__).parents[3] / "src"
OPTIONS = {"page_size": 16, "dtype": "float32", "max_total_tokens": None}


def free_port() -> int:
    """A port that is free, and so is the next, most likely."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def meet_all(*options: dict[str, Any], ranks: list[int] | None = None) -> list[Future[Crew]]:
    """Each process's outcome of the meeting, process 0's first."""
    port, size = free_port(), len(options)
    with ThreadPoolExecutor(size) as pool:
        return [
            pool.submit(meet, "127.0.0.1", port, rank, size, each)
            for rank, each in zip(ranks or range(size), options, strict=True)
        ]


@pytest.fixture
def trio() -> Iterator[list[Crew]]:
    crews = [each.result() for each in meet_all(OPTIONS, OPTIONS, OPTIONS)]
    yield crews
    for each in crews:
        each.part()
    for each in crews:
        each.close()


def test_frames_reach_everyone_in_order(trio: list[Crew]) -> None:
    leader, *others = trio
    steps = [b"", b"abc", bytes(3_000_000)]  # more than the network's buffers
    with ThreadPoolExecutor(1) as pool:
        sent = [pool.submit(leader.send, Kind.STEP, each) for each in steps]
        for other in others:
            assert [other.peers[0].receive() for _ in steps] == [(Kind.STEP, each) for each in steps]
        for each in sent:
            each.result()
    assert [each.rank for each in trio] == [0, 1, 2]


def test_the_minimum_is_everyones(trio: list[Crew]) -> None:
    for values in ((5, 3, 4), (0, 0, 0), (-(2**40), 1, 2**40)):
        with ThreadPoolExecutor(3) as pool:
            got = list(pool.map(lambda each, value: each.minimum(value), trio, values))
        assert got == [min(values)] * 3


def refusals(outcomes: list[Future[Crew]]) -> list[str]:
    errors = [each.exception() for each in outcomes]
    assert all(isinstance(error, ConfigError) for error in errors), errors
    return [str(error) for error in errors]


def test_options_that_differ_are_named_to_both() -> None:
    said = refusals(meet_all(OPTIONS, OPTIONS | {"page_size": 32}))
    assert said == ["page_size is 16 for process 0 and 32 for process 1; accepted is one value for all"] * 2


def test_a_rank_that_is_not_free_is_refused() -> None:
    said = refusals(meet_all(OPTIONS, OPTIONS, ranks=[0, 7]))
    assert said[0] == said[1] and "node_rank is 7" in said[0]


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "MEETING", 0.5)
    with pytest.raises(ConfigError, match="nnodes is 3; process 1, 2 did not come in 0.5 s"):
        meet("127.0.0.1", free_port(), 0, 3, OPTIONS)
    port = free_port()
    with pytest.raises(ConfigError, match=f"dist_init_addr is 127.0.0.1:{port - 1}, where no process 0"):
        meet("127.0.0.1", port, 1, 3, OPTIONS)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigError, match="cannot be bound"):
        meet("127.0.0.1", port, 0, 3, OPTIONS)


def test_strangers_do_not_disturb_the_meeting() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(meet, "127.0.0.1", port, 0, 2, OPTIONS)
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff" * 64, b"\x02\x00\x00\x00\x01{}"):
            with crew._call("127.0.0.1", port) as stranger:
                stranger.sendall(nonsense)
        other = pool.submit(meet, "127.0.0.1", port, 1, 2, OPTIONS).result()
    leader.result().part()
    other.close()


PROCESS = f"""
import sys, time
sys.path.insert(0, {str(SRC)!r})
from radixmesh.backends.jax import crew
crew.SILENCE = 2.0
rank, port = int(sys.argv[1]), int(sys.argv[2])
mine = crew.meet("127.0.0.1", port, rank, 3, {{}})
mine.minimum(0)
print("met", flush=True)
time.sleep(60)
"""


def launch() -> list["subprocess.Popen[str]"]:
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(3)
    ]  # fmt: skip


def killed(victim: "subprocess.Popen[str]") -> None:
    victim.kill()


def frozen(victim: "subprocess.Popen[str]") -> None:
    os.kill(victim.pid, signal.SIGSTOP)


@pytest.mark.parametrize(
    ("rank", "fate", "reason"),
    [
        (0, killed, "process 0 at 127.0.0.1 has ended"),
        (1, killed, "process 1 at 127.0.0.1 has ended"),
        (1, frozen, "process 1 at 127.0.0.1 has given no sign of life for 2 s"),
    ],
)
def test_all_end_with_one(rank: int, fate: Callable[[Any], None], reason: str) -> None:
    processes = launch()
    try:
        for each in processes:
            assert each.stdout is not None and each.stdout.readline() == "met\n"
        fate(processes[rank])
        started = time.monotonic()
        left = [each for each in processes if each is not processes[rank]]
        said = [each.communicate(timeout=20)[1] for each in left]
        assert time.monotonic() - started < 8
        assert [each.returncode for each in left] == [1, 1]
        assert f"radixmesh: error: {reason}; this process ends with it\n" in said[0]
    finally:
        for each in processes:
            each.kill()
            each.communicate()
