"""How often a dead engine is started again, with an engine whose lives are written in the test."""

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from radixmesh.engine.errors import EngineDeadError
from radixmesh.engine.server import supervisor
from radixmesh.engine.server.supervisor import MAX_RESTARTS, until_engine_is_gone


class Engine:
    """Dies again and again; `starts` says which of its restarts work, the last one for ever."""

    def __init__(self, starts: list[bool]) -> None:
        self.starts, self.restarts = starts, 0

    @property
    def alive(self) -> bool:
        return False

    async def restart(self) -> None:
        works = self.starts[min(self.restarts, len(self.starts) - 1)]
        self.restarts += 1
        if not works:
            raise EngineDeadError("it will not start")


def server_of(engine: Any, *, restart_engine: bool = True) -> Any:
    counted: list[int] = []
    metrics = SimpleNamespace(count_restart=lambda: counted.append(1), counted=counted)
    options = SimpleNamespace(restart_engine=restart_engine, heartbeat_timeout=3.0)
    return SimpleNamespace(llm=engine, options=options, metrics=metrics, draining=False)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited before restarts, without waiting."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(supervisor, "asyncio", SimpleNamespace(sleep=sleep))
    return slept


@pytest.mark.parametrize("starts", [[True], [False], [False, True]])
def test_restarts_are_bounded_and_ever_slower(pauses: list[float], starts: list[bool]) -> None:
    server = server_of(Engine(starts))
    asyncio.run(until_engine_is_gone(server))
    assert server.llm.restarts == len(server.metrics.counted) == MAX_RESTARTS == 5
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_old_restarts_do_not_count(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 150)  # 150 s pass between two looks at the clock
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    server = server_of(Engine([True]))
    monkeypatch.setattr(
        server.metrics, "count_restart", lambda: setattr(server, "draining", len(pauses) == 20)
    )
    asyncio.run(until_engine_is_gone(server))
    assert server.llm.restarts == 20 and max(pauses) <= 2.0


def test_without_the_option_the_first_end_is_the_last(pauses: list[float]) -> None:
    server = server_of(Engine([True]), restart_engine=False)
    asyncio.run(until_engine_is_gone(server))
    assert server.llm.restarts == 0 and not server.metrics.counted


class Silent:
    """Alive; `ages` are how long ago it gave a sign of life, at each look. Ends with them, or when killed."""

    def __init__(self, ages: list[float]) -> None:
        self.ages, self.killed = iter([*ages, None]), ""
        self.heartbeat_age: float | None = 0.0

    @property
    def alive(self) -> bool:
        self.heartbeat_age = next(self.ages)
        return self.heartbeat_age is not None and not self.killed

    def kill(self, reason: str) -> None:
        self.killed = reason


@pytest.mark.parametrize(
    "ages, restart_engine, killed",
    [
        ([each / 4 for each in range(20)], True, True),  # 3 s of silence past what is usual
        ([each / 4 for each in range(20)], False, False),
        ([each / 4 for each in range(10)] * 5, True, False),  # steps of 2.5 s
        ([600.0] * 3 + [0.1] * 9, True, False),  # the server stood still as long as the engine
    ],
)
def test_who_is_silent_for_too_long_is_killed(
    pauses: list[float], ages: list[float], restart_engine: bool, killed: bool
) -> None:
    engine = Silent(ages)
    server = server_of(engine, restart_engine=restart_engine)
    asyncio.run(supervisor._until_ended(server))
    assert bool(engine.killed) == killed
    assert not killed or engine.killed == "it gave no sign of life for 3 s, by heartbeat_timeout"
