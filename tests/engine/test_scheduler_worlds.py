"""Random worlds: whatever the limits, options, arrivals, aborts and device failures, every request ends,
its tokens are the oracle's, and the books balance after every step."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.engine.batch import U32, ScheduleBatch, StepTokens
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.errors import RequestError
from radixmesh.engine.outputs import TokenOutput
from radixmesh.engine.request import FinishReason, Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, PendingTokens, RunnerCapacity
from tests.automaton import Automaton, random_automaton

EOS = 3
CUT_SHORT = (FinishReason.ABORT, FinishReason.ERROR)


class Unreliable(FakeRunner):
    """Fails about one step in fifty if `fails`, never two that are near each other."""

    fails = False
    rng = random.Random(0)
    last_failure = -10
    num_failures = 0

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> PendingTokens:  # type: ignore[override]
        (batch,) = batches
        assert batch is not None
        failing = self.fails and batch.step > self.last_failure + 6 and self.rng.random() < 0.02
        if failing:
            self.last_failure = batch.step
            self.num_failures += 1
            if self.rng.random() < 0.5:
                raise RuntimeError("the launch failed")
        return Outcome(super().forward(batches), failing)


@dataclass
class Outcome:
    pending: PendingTokens
    failing: bool

    def constrain(self, masks: Sequence[U32 | None]) -> None:
        self.pending.constrain(masks)

    def result(self) -> Sequence[StepTokens]:
        tokens = self.pending.result()
        if self.failing:
            raise RuntimeError("the step failed")
        return tokens


@dataclass
class World:
    """An engine of random size and options, and what was asked of it."""

    seed: int
    requests: dict[str, Request] = field(default_factory=dict)
    automata: dict[str, Automaton | None] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, TokenOutput] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)
        self.vocab = rng.choice([7, 50, 997])
        pages, page_size = rng.randrange(3, 60), rng.choice([1, 2, 4, 16])
        self.context = rng.choice([20, 100, 300])
        self.max_tokens = min(self.context, pages * page_size)
        self.eos_every = rng.choice([0, 5, 40])
        capacity = RunnerCapacity(
            num_pages=pages,
            page_size=page_size,
            max_running_requests=rng.choice([1, 2, 5, 16]),
            max_step_tokens=rng.choice([1, 2, 7, 32, 128]),
            max_page_indices=pages + rng.choice([0, 0, pages, 4 * pages]),
        )
        self.runner = runner = Unreliable(capacity, self.vocab, eos_token_id=EOS, eos_every=self.eos_every)
        runner.fails, runner.rng = rng.random() < 0.25, rng
        config = EngineConfig(
            disable_overlap_schedule=rng.random() < 0.3,
            disable_radix_cache=rng.random() < 0.25,
            schedule_policy=rng.choice(["fcfs", "lpm", "dfs-weight", "priority", "random"]),
            radix_eviction_policy=rng.choice(["lru", "lfu"]),
            random_seed=self.seed,
        )
        info = ModelInfo("fake", "", self.vocab, self.context, frozenset({EOS}))
        self.engine = Engine(config, info, runner, strict=True)
        self.stems = [[rng.randrange(self.vocab) for _ in range(rng.randrange(1, 60))] for _ in range(3)]

    def add(self, parent: int) -> None:
        """Add one to four requests of one prompt."""
        rng = self.rng
        stem = rng.choice(self.stems)
        prompt = stem[: rng.randrange(1, len(stem) + 1)]
        prompt = prompt + [rng.randrange(self.vocab) for _ in range(rng.choice([0, 0, 3, 20]))]
        bound = rng.random() < 0.3
        automaton = random_automaton(rng, self.vocab, EOS) if bound else None
        params = SamplingParams(
            max_new_tokens=rng.choice([None, 3, 10, 40]),
            min_new_tokens=0 if bound else rng.choice([0, 0, 0, 3]),
            temperature=rng.choice([0.0, 1.0]),
            stop_token_ids=tuple(rng.sample(range(self.vocab), rng.choice([0, 0, 2]))),
            ignore_eos=rng.random() < 0.2,
            logprobs=rng.choice([None, None, 0, 2]),
            prompt_logprobs=rng.choice([None, None, None, 1]),
        )
        priority, extra_key = rng.randrange(3), rng.choice(["", "", "x"])
        for child in range(rng.choice([1, 1, 1, 4])):
            request = Request(
                f"{parent}-{child}",
                np.array(prompt, np.int32),
                params,
                seed=rng.randrange(100),
                eos_token_ids=frozenset({EOS}),
                priority=priority,
                extra_key=extra_key,
                parent_id=str(parent),
                matcher=automaton.matcher() if automaton else None,
            )
            if len(prompt) + 1 > self.max_tokens:
                with pytest.raises(RequestError, match="prompt has"):
                    self.engine.add_request(request)
            else:
                self.engine.add_request(request)
                self.requests[request.id] = request
                self.automata[request.id] = automaton

    def abort_someone(self) -> None:
        if self.requests:
            name = self.rng.choice(list(self.requests))
            self.engine.abort(name if self.rng.random() < 0.7 else name.split("-")[0])
            self.check_books()

    def step(self) -> None:
        for output in self.engine.step():
            assert output.request_id not in self.ends, "output after the last"
            self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
            asked = self.requests[output.request_id].params.logprobs
            if asked is not None and output.token_ids:
                assert output.logprobs is not None
                assert [len(each.top_ids) for each in output.logprobs] == [asked] * len(output.token_ids)
            else:
                assert output.logprobs is None
            if output.finish_reason is not None:
                self.ends[output.request_id] = output
        self.check_books()

    def check_books(self) -> None:
        assert self.engine.schedulers[0].find_lost_pages() is None
        self.engine.schedulers[0].cache.check_integrity()

    def expected(self, request: Request) -> list[int]:
        params, prompt, automaton = request.params, request.prompt_ids.tolist(), self.automata[request.id]
        room = self.max_tokens - len(prompt)
        return expected_tokens(
            prompt,
            room if params.max_new_tokens is None else min(params.max_new_tokens, room),
            self.vocab,
            seed=None if params.greedy else request.seed,
            eos_token_id=EOS,
            eos_every=self.eos_every,
            stop={*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))},
            min_new_tokens=params.min_new_tokens,
            allowed=automaton.allowed if automaton else None,
        )


@pytest.mark.parametrize("seed", range(40))
def test_a_random_world(seed: int) -> None:
    world = World(seed)
    rng = world.rng
    for parent in range(rng.randrange(1, 60)):
        world.add(parent)
        for _ in range(rng.choice([0, 0, 1, 1, 5])):
            world.step()
        if rng.random() < 0.15:
            world.abort_someone()
    for _ in range(20_000):
        if not world.engine.has_work:
            break
        world.step()
    assert world.ends.keys() == world.requests.keys()
    stats = world.engine.stats()
    assert stats.free_pages + stats.cached_pages == stats.num_pages
    assert stats.integrity_violations == 0
    # the fake refuses a step that breaks the protocol: that would be one more
    assert stats.step_failures == world.runner.num_failures
    for name, request in world.requests.items():
        got, want = world.tokens[name], world.expected(request)
        cut_short = world.ends[name].finish_reason in CUT_SHORT
        assert got == (want[: len(got)] if cut_short else want)
