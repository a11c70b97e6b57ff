"""The queue's bound in seconds, on a clock that the test turns: each step takes a tenth of a second."""

from typing import Any

import numpy as np
import pytest

from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.engine import backlog
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.errors import ConfigError, QueueFullError
from radixmesh.engine.outputs import TokenOutput
from radixmesh.engine.request import FinishReason, Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, RunnerCapacity

ROWS, PROMPT, NEW, STEP = 4, 8, 20, 0.1


class World:
    """An engine of four rows; a request has 8 prompt and 20 new tokens, so two start in a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.now = 100.0
        monkeypatch.setattr(backlog.time, "monotonic", lambda: self.now)  # type: ignore[attr-defined]
        capacity = RunnerCapacity(1000, 4, ROWS, 64, 4000)
        info = ModelInfo("fake", "", 997, 200, frozenset())
        runner = FakeRunner(capacity, 997)
        self.engine = Engine(EngineConfig(**options), info, runner, strict=True)
        self.started: dict[str, float] = {}
        self.arrived: dict[str, float] = {}
        self.ended: dict[str, TokenOutput] = {}

    def add(self) -> None:
        """Add a request. Raises QueueFullError."""
        name = str(len(self.arrived))
        params = SamplingParams(max_new_tokens=NEW, temperature=0.0, ignore_eos=True)
        prompt = np.arange(PROMPT, dtype=np.int32) + int(name) % 900
        self.engine.add_request(Request(name, prompt, params, arrival_time=self.now))
        self.arrived[name] = self.now

    def step(self) -> None:
        self.now += STEP
        for output in self.engine.step():
            if output.token_ids:
                self.started.setdefault(output.request_id, self.now)
            if output.finish_reason is not None:
                self.ended[output.request_id] = output

    def flood(self, steps: int, each: int = 4) -> int:
        """`each` requests come in every step, twenty times what can be served; how many were refused."""
        refused = 0
        for _ in range(steps):
            for _ in range(each):
                try:
                    self.add()
                except QueueFullError:
                    refused += 1
            self.step()
        return refused

    def waits(self) -> list[float]:
        return [self.started[name] - self.arrived[name] for name in self.started]


def test_without_a_bound_everybody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    assert world.flood(200) == 0
    stats = world.engine.stats()
    assert stats.num_waiting > 700 and stats.aborted == 0
    # two requests start in a second
    assert stats.queue_wait == pytest.approx(stats.num_waiting / 2, rel=0.15)


@pytest.mark.parametrize("groups_of", [1, 4])
def test_nobody_waits_longer_than_the_bound(monkeypatch: pytest.MonkeyPatch, groups_of: int) -> None:
    world = World(monkeypatch, max_queue_wait=5.0)
    refused = world.flood(600, groups_of)
    late = [output for output in world.ended.values() if output.refused]
    assert all(output.finish_reason is FinishReason.ABORT and "5" in (output.error or "") for output in late)
    # the step in which a request starts gives its token in the next
    assert max(world.waits()) <= 5.0 + 3 * STEP
    # the rows were never idle: two requests a second for a minute
    assert len(world.started) == pytest.approx(120, abs=6)
    # most of the excess was told at once, not after five seconds
    assert refused > 5 * len(late) > 0
    stats = world.engine.stats()
    assert stats.errors == 0 and stats.queue_wait < 6.5


def test_a_short_queue_is_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few requests at a time, for long: no rate was measured, or a low one, and yet a burst is taken."""
    world = World(monkeypatch, max_queue_wait=5.0)
    for _ in range(20):
        world.add()
        for _ in range(30):
            world.step()
    for _ in range(12):
        world.add()
    for _ in range(100):
        world.step()
    assert len(world.started) == 32 and not any(output.refused for output in world.ended.values())


def test_who_ran_once_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_queue_wait=1.0, disable_overlap_schedule=True)
    world.add()
    world.step()
    world.step()
    scheduler = world.engine.schedulers[0]
    (request,) = scheduler.decoding.values()
    scheduler._preempt(request)
    world.now += 10
    assert scheduler.backlog.overdue() == []
    for _ in range(40):
        world.step()
    assert world.ended["0"].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("value", [0, -1.0, True])
def test_bad_bounds_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="max_queue_wait"):
        EngineConfig(max_queue_wait=value)
