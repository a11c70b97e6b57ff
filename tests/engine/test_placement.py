"""Data parallel groups: where requests go, steps of all groups together, and books kept for each."""

from collections.abc import Sequence

import numpy as np
import pytest

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.engine.batch import U32, ScheduleBatch, StepTokens
from radixmesh.engine.config import Choice, EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.errors import RequestError
from radixmesh.engine.outputs import TokenOutput
from radixmesh.engine.placement import REQUEST_TOKENS
from radixmesh.engine.request import FinishReason, Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, PendingTokens, RunnerCapacity

VOCAB, GROUPS = 997, 3
CAPACITY = RunnerCapacity(64, 4, 4, 32, 256, GROUPS)


class Groups:
    """A fake runner for each group, whose steps come together."""

    capacity = CAPACITY
    choices: tuple[Choice, ...] = ()

    def __init__(self) -> None:
        self.runners = [FakeRunner(CAPACITY, VOCAB) for _ in range(GROUPS)]
        self.steps: list[list[bool]] = []  # which groups had a batch
        self.fail_steps: set[int] = set()

    def warmup(self) -> None: ...

    def check(self) -> None: ...

    def close(self) -> None: ...

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> "Together":
        assert len(batches) == GROUPS and any(batches)
        self.steps.append([batch is not None for batch in batches])
        pending: list[PendingTokens | None] = [
            None if batch is None else runner.forward([batch])
            for runner, batch in zip(self.runners, batches, strict=True)
        ]
        return Together(pending, len(self.steps) in self.fail_steps)


class Together:
    def __init__(self, pending: list[PendingTokens | None], fails: bool) -> None:
        self.pending, self.fails = pending, fails

    def constrain(self, masks: Sequence[U32 | None]) -> None:
        for pending, mask in zip(self.pending, masks, strict=True):
            if mask is not None:
                assert pending is not None
                pending.constrain([mask])

    def result(self) -> list[StepTokens]:
        if self.fails:
            raise RuntimeError("device lost")
        nothing = StepTokens(np.zeros(0, np.int32))
        return [nothing if each is None else each.result()[0] for each in self.pending]


def make_engine(**options: object) -> tuple[Engine, Groups]:
    runner = Groups()
    config = EngineConfig.from_options(**options)
    return Engine(config, ModelInfo("fake", "", VOCAB, 200, frozenset()), runner, strict=True), runner


def add(engine: Engine, name: str, prompt: Sequence[int], count: int = 8, parent: str | None = None) -> int:
    """Queue a request; returns the group that got it."""
    params = SamplingParams(max_new_tokens=count, temperature=0.0)
    engine.add_request(Request(name, np.array(prompt, np.int32), params, parent_id=parent))
    (group,) = [at for at, each in enumerate(engine.schedulers) if name in each.requests]
    return group


def finish(engine: Engine) -> dict[str, TokenOutput]:
    """Run to the end; each request's last output with all of its tokens."""
    tokens: dict[str, list[int]] = {}
    ends: dict[str, TokenOutput] = {}
    while engine.has_work:
        for output in engine.step():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish_reason is not None:
                output.token_ids = tokens[output.request_id]
                ends[output.request_id] = output
    return ends


def test_requests_spread_over_groups_and_get_their_tokens() -> None:
    engine, runner = make_engine()
    prompts = {f"r{index}": [index, *range(index % 11)] for index in range(20)}
    groups = [add(engine, name, prompt, 5 + len(prompt)) for name, prompt in prompts.items()]
    assert sorted(np.bincount(groups).tolist()) == [6, 7, 7]
    ends = finish(engine)
    for name, prompt in prompts.items():
        assert ends[name].token_ids == expected_tokens(prompt, 5 + len(prompt), VOCAB)
    assert [True] * GROUPS in runner.steps
    stats = engine.stats()
    assert (stats.finished, stats.num_pages, stats.page_size) == (20, 64 * GROUPS, 4)
    assert stats.steps == len(runner.steps) and stats.token_usage == 0
    assert stats.prompt_tokens == sum(map(len, prompts.values()))


def test_a_request_goes_where_its_prefix_is() -> None:
    engine, _ = make_engine()
    stem = list(range(40))
    add(engine, "other", [7])
    home = add(engine, "first", stem)
    finish(engine)
    assert home == 1
    assert add(engine, "second", [*stem, 5]) == home
    assert add(engine, "stranger", list(range(100, 140))) != home
    ends = finish(engine)
    assert ends["second"].num_cached_tokens == 40


def test_a_prefix_that_all_share_does_not_leave_groups_idle() -> None:
    engine, _ = make_engine()
    stem = list(range(100))
    add(engine, "first", stem)
    finish(engine)
    groups = [add(engine, f"r{index}", [*stem, index], 2) for index in range(9)]
    assert len(stem) < REQUEST_TOKENS and groups[0] == 0
    assert np.bincount(groups).tolist() == [3, 3, 3]


def test_a_full_group_gets_nothing_while_another_has_room() -> None:
    engine, _ = make_engine(max_queued_requests=1)
    stem = list(range(100))
    add(engine, "first", stem)
    finish(engine)
    assert sorted(add(engine, f"r{index}", stem, 2) for index in range(3)) == [0, 1, 2]
    with pytest.raises(RequestError, match="max_queued_requests is 1"):
        add(engine, "one too many", [1])


def test_a_name_is_used_once_and_bad_prompts_are_refused() -> None:
    engine, _ = make_engine()
    add(engine, "a", [1, 2])
    with pytest.raises(RequestError, match="'a' is in use"):
        add(engine, "a", [5])
    for prompt in ([], [VOCAB], [1.5]):
        with pytest.raises(RequestError, match="prompt"):
            engine.add_request(Request("b", np.array(prompt), SamplingParams()))


def test_abort_reaches_children_in_every_group_and_flush_every_cache() -> None:
    engine, _ = make_engine()
    groups = {add(engine, f"p-{index}", [index] * 9, 20, parent="p") for index in range(6)}
    assert groups == {0, 1, 2}
    for _ in range(3):
        engine.step()
    assert not engine.flush_cache()
    assert engine.abort("p") and not engine.abort("p")
    ends = finish(engine)
    assert [end.finish_reason for end in ends.values()] == [FinishReason.ABORT] * 6
    assert engine.stats().cached_pages >= GROUPS
    assert engine.flush_cache()
    stats = engine.stats()
    assert (stats.cached_pages, stats.free_pages) == (0, 64 * GROUPS)


@pytest.mark.parametrize("bad", range(1, 5))
def test_a_failing_step_fails_in_every_group(bad: int) -> None:
    """All groups share the step: none can know what of it happened."""
    engine, runner = make_engine()
    runner.fail_steps = {bad}
    prompts = {f"r{index}": [50 + index, *range(9)] for index in range(6)}
    for name, prompt in prompts.items():
        add(engine, name, prompt, 4)
    ends = finish(engine)
    assert {end.finish_reason for end in ends.values()} <= {FinishReason.ERROR, FinishReason.LENGTH}
    stats = engine.stats()
    assert stats.step_failures == 1 and stats.errors >= GROUPS
    for name, prompt in prompts.items():
        add(engine, f"again-{name}", prompt, 4)
    again = finish(engine)
    for name, prompt in prompts.items():
        assert again[f"again-{name}"].token_ids == expected_tokens(prompt, 4, VOCAB)
