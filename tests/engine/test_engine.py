"""The engine's loop: overlap, aborts, failing steps, and books that do not balance."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.engine.batch import U32, ScheduleBatch, StepTokens
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import MAX_CONSECUTIVE_FAILURES, Engine
from radixmesh.engine.errors import EngineDeadError
from radixmesh.engine.outputs import TokenOutput
from radixmesh.engine.page_pool import IntegrityError
from radixmesh.engine.request import FinishReason, Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, PendingTokens, RunnerCapacity

VOCAB = 997
CAPACITY = RunnerCapacity(64, 4, 8, 32, 256)


class Device(FakeRunner):
    """A fake runner that notes what is asked of it, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__(CAPACITY, VOCAB)
        self.events: list[str] = []
        self.fail_forward: set[int] = set()
        self.fail_result: set[int] = set()

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> PendingTokens:  # type: ignore[override]
        (batch,) = batches
        assert batch is not None
        self.events.append(f"forward {batch.step}")
        if batch.step in self.fail_forward:
            raise RuntimeError("no memory")
        return Watched(self, batch, super().forward(batches))


class Watched:
    def __init__(self, device: Device, batch: ScheduleBatch, pending: PendingTokens) -> None:
        self.device, self.batch, self.pending = device, batch, pending

    def constrain(self, masks: Sequence[U32 | None]) -> None:
        self.device.events.append(f"constrain {self.batch.step}")
        self.pending.constrain(masks)

    def result(self) -> Sequence[StepTokens]:
        self.device.events.append(f"result {self.batch.step}")
        tokens = self.pending.result()
        if self.batch.step in self.device.fail_result:
            raise RuntimeError("device lost")
        return tokens


def make_engine(*, strict: bool = True, **options: object) -> tuple[Engine, Device]:
    device = Device()
    info = ModelInfo("fake", "", VOCAB, 200, frozenset())
    return Engine(EngineConfig.from_options(**options), info, device, strict=strict), device


def make_request(name: str, prompt: list[int], count: int = 8, parent: str | None = None) -> Request:
    params = SamplingParams(max_new_tokens=count, temperature=0.0)
    return Request(name, np.array(prompt, np.int32), params, parent_id=parent)


class Answers:
    """Runs an engine and gathers what comes out."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, TokenOutput] = {}

    def step(self) -> None:
        for output in self.engine.step():
            assert output.request_id not in self.ends, "output after the last"
            self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish_reason is not None:
                self.ends[output.request_id] = output

    def all(self) -> "Answers":
        for _ in range(1000):
            if not self.engine.has_work:
                return self
            self.step()
        raise AssertionError("the engine never comes to rest")


def prompts() -> Iterator[list[int]]:
    return iter([[start, *range(10)] for start in range(20, 200)])


def test_the_next_step_is_launched_before_the_last_is_collected() -> None:
    engine, device = make_engine()
    engine.add_request(make_request("a", [1, 2, 3], 4))
    Answers(engine).all()
    want = [
        "forward 0",
        "forward 1",
        "result 0",
        "forward 2",
        "result 1",
        "forward 3",
        "result 2",
        "result 3",
    ]
    assert device.events == want


def test_without_overlap_each_step_is_collected_at_once() -> None:
    engine, device = make_engine(disable_overlap_schedule=True)
    engine.add_request(make_request("a", [1, 2, 3], 3))
    Answers(engine).all()
    want = [f"{what} {step}" for step in range(3) for what in ("forward", "result")]
    assert device.events == want


def test_idle_steps_do_nothing() -> None:
    engine, device = make_engine()
    assert not engine.has_work
    assert engine.step() == [] and device.events == []


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("steps", range(7))
def test_abort_at_any_moment_frees_pages_at_once(steps: int, overlap: bool) -> None:
    engine, _ = make_engine(disable_overlap_schedule=not overlap)
    answers = Answers(engine)
    other = make_request("other", list(range(30)), 12)
    engine.add_request(make_request("victim", list(range(100, 170)), 12))
    engine.add_request(other)
    for _ in range(steps):
        answers.step()
    assert engine.abort("victim")
    assert not engine.abort("victim")
    stats = engine.stats()
    assert stats.used_pages == len(other.pages) - other.num_tree_pages
    assert "victim" not in answers.ends
    answers.step()
    assert answers.ends["victim"].finish_reason == FinishReason.ABORT
    answers.all()
    assert answers.tokens["other"] == expected_tokens(list(range(30)), 12, VOCAB)
    assert engine.stats().aborted == 1 and engine.stats().finished == 1


def test_abort_of_a_waiting_request_before_any_step() -> None:
    engine, device = make_engine()
    engine.add_request(make_request("a", [1, 2]))
    assert engine.abort("a")
    assert engine.has_work
    assert [output.finish_reason for output in engine.step()] == [FinishReason.ABORT]
    assert not engine.has_work and device.events == []


def test_abort_by_parent_ends_all_children_and_nobody_else() -> None:
    engine, _ = make_engine()
    for index in range(3):
        engine.add_request(make_request(f"p-{index}", [1, 2, 3], 20, parent="p"))
    engine.add_request(make_request("q", [1, 2, 3], 6))
    answers = Answers(engine)
    for _ in range(3):
        answers.step()
    assert engine.abort("p")
    assert not engine.abort("unknown")
    answers.all()
    assert [answers.ends[f"p-{index}"].finish_reason for index in range(3)] == [FinishReason.ABORT] * 3
    assert answers.tokens["q"] == expected_tokens([1, 2, 3], 6, VOCAB)


@pytest.mark.parametrize("where", ["forward", "result"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("bad", range(6))
def test_a_failing_step_ends_its_requests_and_no_others(where: str, overlap: bool, bad: int) -> None:
    engine, device = make_engine(disable_overlap_schedule=not overlap)
    (device.fail_forward if where == "forward" else device.fail_result).add(bad)
    answers = Answers(engine)
    given = {f"r{index}": prompt for index, prompt in zip(range(12), prompts(), strict=False)}
    for name, prompt in given.items():  # more than there are rows: some are still waiting when it fails
        engine.add_request(make_request(name, prompt, 10))
    answers.all()
    reasons = {name: answers.ends[name].finish_reason for name in given}
    failed = [name for name in given if reasons[name] == FinishReason.ERROR]
    assert 0 < len(failed) <= 8
    for name in failed:
        message = answers.ends[name].error
        assert message is not None and ("no memory" in message or "device lost" in message)
    for name, prompt in given.items():
        want = expected_tokens(prompt, 10, VOCAB)
        assert answers.tokens[name] == (want[: len(answers.tokens[name])] if name in failed else want)
    stats = engine.stats()
    assert (stats.step_failures, stats.errors) == (1, len(failed))
    assert stats.free_pages + stats.cached_pages == stats.num_pages
    # what the lost step was to write is not in the cache: asking again gives the right answer
    for name, prompt in given.items():
        engine.add_request(make_request(f"again-{name}", prompt, 10))
    answers.all()
    for name, prompt in given.items():
        assert answers.tokens[f"again-{name}"] == expected_tokens(prompt, 10, VOCAB)


def test_a_device_that_keeps_failing_is_given_up() -> None:
    engine, device = make_engine(disable_overlap_schedule=True)
    device.fail_result = set(range(100))
    source = prompts()
    for attempt in range(MAX_CONSECUTIVE_FAILURES):
        engine.add_request(make_request(f"r{attempt}", next(source)))
        if attempt < MAX_CONSECUTIVE_FAILURES - 1:
            assert [output.finish_reason for output in engine.step()] == [FinishReason.ERROR]
    with pytest.raises(EngineDeadError, match=r"3 steps in a row failed, the last with: device lost"):
        engine.step()


def test_failures_with_a_good_step_between_are_survived() -> None:
    engine, device = make_engine(disable_overlap_schedule=True)
    device.fail_result = set(range(0, 40, 2))
    answers = Answers(engine)
    for index, prompt in zip(range(10), prompts(), strict=False):
        engine.add_request(make_request(f"r{index}", prompt, 1))
        answers.all()
    reasons = [answers.ends[f"r{index}"].finish_reason for index in range(10)]
    assert reasons == [FinishReason.ERROR, FinishReason.LENGTH] * 5


def test_flush_cache_only_when_idle() -> None:
    engine, _ = make_engine()
    engine.add_request(make_request("a", list(range(20)), 2))
    assert not engine.flush_cache()
    engine.step()
    assert not engine.flush_cache()
    Answers(engine).all()
    assert engine.stats().cached_pages == 5
    assert engine.flush_cache()
    assert (engine.stats().cached_pages, engine.stats().free_pages) == (0, 64)


def test_stats_count_tokens_and_pages() -> None:
    engine, _ = make_engine()
    for name in ("a", "b"):
        engine.add_request(make_request(name, list(range(21)), 4))
        Answers(engine).all()
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generation_tokens) == (42, 20, 8)
    assert (stats.finished, stats.num_running, stats.num_waiting, stats.used_pages) == (2, 0, 0, 0)
    assert stats.scheduled_tokens == 21 + 3 + 1 + 3
    assert stats.token_usage == 0


def test_lost_pages_are_found_logged_counted_and_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    engine, _ = make_engine(strict=False)
    engine.schedulers[0].pool.allocate(5)  # nobody will ever free these
    engine.add_request(make_request("a", [1, 2, 3]))
    with caplog.at_level(logging.ERROR):
        answers = Answers(engine).all()
    assert answers.ends["a"].finish_reason == FinishReason.LENGTH
    assert "every page is free again" in caplog.text
    stats = engine.stats()
    assert (stats.integrity_violations, stats.free_pages) == (1, 64)
    engine.add_request(make_request("b", [1, 2, 3]))
    assert answers.all().tokens["b"] == expected_tokens([1, 2, 3], 8, VOCAB)
    assert engine.stats().integrity_violations == 1


def test_a_double_free_is_an_error_in_tests_and_repaired_in_production() -> None:
    strict, _ = make_engine()
    with pytest.raises(IntegrityError, match="page 3 was freed"):
        strict.schedulers[0].pool.free([3])
    engine, _ = make_engine(strict=False)
    engine.schedulers[0].pool.free([3])
    assert (engine.stats().integrity_violations, engine.stats().free_pages) == (1, 64)


@pytest.mark.parametrize("method", ["schedule", "process"])
def test_a_bug_in_the_scheduler_ends_open_requests_not_the_engine(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = make_engine(strict=False)
    answers = Answers(engine)
    for name, prompt in zip("abc", prompts(), strict=False):
        engine.add_request(make_request(name, prompt))
    for _ in range(3):
        answers.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.schedulers[0], method, lambda *args: 1 // 0)
        answers.step()
    answers.all()
    assert {answers.ends[name].finish_reason for name in "abc"} == {FinishReason.ERROR}
    assert engine.stats().free_pages == 64
    engine.add_request(make_request("d", [5, 6, 7]))
    assert answers.all().tokens["d"] == expected_tokens([5, 6, 7], 8, VOCAB)
