"""The trials of benchmarks/reliability, cut to seconds: see docs/reliability.md."""

import pytest

from benchmarks.reliability import kill, overload, schema, slow_reader, soak, vanish
from benchmarks.reliability.report import Report

pytestmark = pytest.mark.slow


def holds(report: Report) -> None:
    assert report.holds, f"\n{report}"


def test_overload() -> None:
    # a busy machine is late with requests and steps alike: what is lost here is not lost to overload
    trial = overload.Overload(seconds=8, rows=4, tokens=8, queue_wait=2, tolerance=0.25)
    holds(overload.run(trial))


def test_clients_that_vanish() -> None:
    holds(vanish.run(vanish.Vanish(clients=100, rounds=2, seconds=2)))


def test_clients_that_stop_reading() -> None:
    trial = slow_reader.SlowReader(
        readers=4, stalled=10, step=0.003, seconds=5, stall_timeout=2, tolerance=0.5
    )
    holds(slow_reader.run(trial))


def test_kill_of_the_engine() -> None:
    holds(kill.run(kill.Kill(requests=28, kills=1, load_time=0.2, heartbeat_timeout=3)))


def test_soak() -> None:
    # so few tokens do not tell growth from warming up
    holds(soak.run(soak.Soak(tokens=20_000, round=150, pool=1024, megabytes=50)))


def test_schemathesis() -> None:
    holds(schema.run(schema.Schema(examples=2, phases="fuzzing", seconds=120)))


def test_a_report_tells_what_does_not_hold() -> None:
    report = Report("a title")
    report.tell("what was seen", 0.123456)
    assert report.holds
    report.check("what has a bound", 3, "<= 2", False)
    assert not report.holds
    title, head, first, second = str(report).splitlines()
    assert title == "# a title" and head.split() == ["what", "seen", "bound", "holds"]
    assert first.split()[-1] == "0.1235" and second.split()[-3:] == ["<=", "2", "NO"]
