"""Constrained outputs: masks in time, forced runs in one chunk, and failures that stay with their request."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.backends.fake.runner import FakePending, FakeRunner, ProtocolError
from radixmesh.engine.batch import U32, ScheduleBatch, StepTokens
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.outputs import TokenOutput
from radixmesh.engine.request import FinishReason, Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, RunnerCapacity
from tests.automaton import Automaton, AutomatonMatcher, chain, random_automaton

VOCAB, EOS = 97, 3


class Recorder(FakeRunner):
    """A fake runner that notes the order of calls and the size of steps."""

    def __init__(self, capacity: RunnerCapacity) -> None:
        super().__init__(capacity, VOCAB)
        self.events: list[str] = []
        self.sizes: list[int] = []
        self.fail_constrain = False

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> FakePending:
        (batch,) = batches
        assert batch is not None
        self.events.append(f"forward {batch.step}")
        self.sizes.append(batch.num_tokens)
        super().forward(batches)
        self._queue[-1] = Noted(self, batch, 0.0)
        return self._queue[-1]


class Noted(FakePending):
    def constrain(self, masks: Sequence[U32 | None]) -> None:
        assert isinstance(self._runner, Recorder)
        self._runner.events.append(f"constrain {self.batch.step}")
        super().constrain(masks)
        if self._runner.fail_constrain:
            self._runner.fail_constrain = False
            raise RuntimeError("no memory")

    def result(self) -> Sequence[StepTokens]:
        assert isinstance(self._runner, Recorder)
        self._runner.events.append(f"result {self.batch.step}")
        return super().result()


class Run:
    """An engine, what was asked of it, and what came; the books must balance after every step."""

    def __init__(self, *, pages: int = 64, rows: int = 8, chunk: int = 32, **options: object) -> None:
        self.runner = Recorder(RunnerCapacity(pages, 4, rows, chunk, 4 * pages))
        self.context = 200
        info = ModelInfo("fake", "", VOCAB, self.context, frozenset({EOS}))
        self.engine = Engine(EngineConfig.from_options(**options), info, self.runner, strict=True)
        self.asked: dict[str, tuple[Request, Automaton | None]] = {}
        self.outputs: dict[str, list[TokenOutput]] = {}

    def add(
        self, name: str, prompt: list[int], automaton: Automaton | None = None, count: int = 30,
        matcher: AutomatonMatcher | None = None, seed: int | None = None, **params: object,
    ) -> None:  # fmt: skip
        params = {"temperature": 0.0 if seed is None else 1.0, "max_new_tokens": count, **params}
        request = Request(
            name, np.array(prompt, np.int32), SamplingParams(**params),  # type: ignore[arg-type]
            seed=seed or 0, eos_token_ids=frozenset({EOS}),
            matcher=matcher or (automaton.matcher() if automaton else None),
        )  # fmt: skip
        self.engine.add_request(request)
        self.asked[name] = request, automaton

    def step(self) -> None:
        for output in self.engine.step():
            self.outputs.setdefault(output.request_id, []).append(output)
        scheduler = self.engine.schedulers[0]
        assert scheduler.find_lost_pages() is None
        scheduler.cache.check_integrity()

    def all(self) -> "Run":
        for _ in range(3000):
            if not self.engine.has_work:
                stats = self.engine.stats()
                assert stats.free_pages + stats.cached_pages == stats.num_pages
                return self
            self.step()
        raise AssertionError("the engine never comes to rest")

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.outputs[name] for token in output.token_ids]

    def end(self, name: str) -> TokenOutput:
        *before, last = self.outputs[name]
        assert last.finish_reason is not None and all(each.finish_reason is None for each in before)
        return last

    def expected(self, name: str) -> list[int]:
        request, automaton = self.asked[name]
        params, prompt = request.params, request.prompt_ids.tolist()
        assert params.max_new_tokens is not None
        return expected_tokens(
            prompt,
            min(params.max_new_tokens, self.context - len(prompt)),
            VOCAB,
            seed=None if params.greedy else request.seed,
            stop={EOS, *params.stop_token_ids},
            allowed=automaton.allowed if automaton else None,
        )


WORDS = chain([10, 11, 12, 20, 30, 31, 32, 33, 34], EOS, free_at=[3])


def test_masks_are_made_while_the_step_runs_and_before_the_next_is_launched() -> None:
    run = Run(disable_jump_forward=True)
    run.add("a", [5, 6, 7], WORDS, 3)
    run.all()
    first, second = ["forward 0", "constrain 0"], ["forward 1", "result 0", "constrain 1"]
    third = ["forward 2", "result 1", "constrain 2"]
    assert run.runner.events == [*first, *second, *third, "result 2"]


def test_without_overlap_masks_come_at_once() -> None:
    run = Run(disable_overlap_schedule=True, disable_jump_forward=True)
    run.add("a", [5, 6, 7], WORDS, 2)
    run.all()
    assert run.runner.events == [
        f"{what} {step}" for step in (0, 1) for what in ("forward", "constrain", "result")
    ]


def test_steps_without_a_constrained_row_stay_one_call() -> None:
    run = Run()
    run.add("a", [5, 6, 7])
    run.all()
    assert not [event for event in run.runner.events if event.startswith("constrain")]


def test_the_fake_refuses_masks_that_are_forgotten_given_twice_or_not_due() -> None:
    run = Run()
    scheduler, runner = run.engine.schedulers[0], run.runner
    run.add("a", [5, 6, 7], WORDS)
    batch = scheduler.schedule()
    assert batch is not None
    pending, masks = FakeRunner.forward(runner, [batch]), scheduler.masks(batch)
    for call in (pending.result, lambda: FakeRunner.forward(runner, [batch])):
        with pytest.raises(ProtocolError, match="waits for its masks"):
            call()
    for wrong in (None, np.zeros_like(masks), np.ones((2, 4), np.uint32)):
        with pytest.raises(ProtocolError, match="masks"):
            pending.constrain([wrong])
    pending.constrain([masks])
    with pytest.raises(ProtocolError, match="no row waits"):
        pending.constrain([masks])


@pytest.mark.parametrize("overlap", [True, False])
def test_forced_runs_save_their_steps(overlap: bool) -> None:
    """Of ten tokens two are chosen: the free one, and the one that follows it while a step is in flight."""
    runs = []
    for jump in (True, False):
        run = Run(disable_overlap_schedule=not overlap, disable_jump_forward=not jump)
        run.add("a", [5, 6, 7], WORDS)
        run.add("free", [5, 6, 8], count=4)
        runs.append(run.all())
    jumping, plain = runs
    assert jumping.tokens("a") == plain.tokens("a") == plain.expected("a")
    assert jumping.tokens("free") == plain.tokens("free") == plain.expected("free")
    assert len(plain.tokens("a")) == 10 and plain.engine.stats().forced_tokens == 0
    stats = jumping.engine.stats()
    assert [len(each.token_ids) for each in jumping.outputs["a"]] == [3, 7]
    # all but the free token, and, if its step was launched already, the one after that
    assert stats.forced_tokens == (8 if overlap else 9)
    assert stats.constrained_tokens == 1 and plain.engine.stats().constrained_tokens == 10
    assert stats.generation_tokens == plain.engine.stats().generation_tokens == 14
    assert stats.mask_seconds > 0


def test_a_forced_run_goes_in_as_one_chunk() -> None:
    automaton = chain([20, *range(40, 60), 70], EOS, free_at=[0, 21])
    run = Run(chunk=64)
    run.add("a", [5, 6, 7], automaton)
    run.all()
    assert run.tokens("a") == run.expected("a")
    # the prompt, the step that was launched when the free token came, the run, and one after the last choice
    assert run.runner.sizes == [3, 1, 20, 1]


def test_a_forced_run_comes_before_prompts_that_wait() -> None:
    run = Run(chunk=8, pages=200)
    automaton = chain([20, *range(40, 48), 70], EOS, free_at=[0, 9])
    run.add("a", [5, 6, 7], automaton)
    run.step()
    run.add("long", list(range(90)) + list(range(90)), count=1)
    for _ in range(8):
        run.step()
    assert run.tokens("a") == run.expected("a") and run.end("a").finish_reason == FinishReason.STOP
    run.all()
    assert run.tokens("long") == run.expected("long")


def test_an_output_without_any_choice_is_never_computed() -> None:
    run = Run()
    run.add("a", [5, 6, 7], chain([10, 11, 12], EOS))
    run.all()
    assert run.tokens("a") == [10, 11, 12, EOS] and run.end("a").matched_stop == EOS
    assert run.runner.events == []


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize(
    ("params", "want", "reason"),
    [
        ({"count": 6}, 6, FinishReason.LENGTH),
        ({"stop_token_ids": (31,)}, 6, FinishReason.STOP),
        ({}, 10, FinishReason.STOP),
    ],
)
def test_what_ends_an_output_ends_it_within_a_forced_run(
    jump: bool, params: dict[str, object], want: int, reason: FinishReason
) -> None:
    run = Run(disable_jump_forward=not jump)
    run.add("a", [5, 6, 7], WORDS, **params)  # type: ignore[arg-type]
    run.all()
    assert run.tokens("a") == run.expected("a") and len(run.tokens("a")) == want
    assert run.end("a").finish_reason == reason


def test_the_context_ends_a_forced_run() -> None:
    run = Run(pages=64)
    run.add("a", [5] * 190, chain(list(range(10, 40)), EOS, free_at=[0]), count=100)
    run.all()
    assert len(run.tokens("a")) == 10 and run.end("a").finish_reason == FinishReason.LENGTH


def test_who_wants_logprobs_gets_them_for_every_token() -> None:
    run = Run()
    run.add("a", [5, 6, 7], WORDS, logprobs=2)
    run.add("b", [5, 6, 7], WORDS, prompt_logprobs=0)  # before any token of the output
    run.all()
    assert run.tokens("a") == run.expected("a") and run.engine.stats().forced_tokens == 0
    scored = [(len(each.prompt_logprobs or []), len(each.token_ids)) for each in run.outputs["b"]]
    assert scored[0] == (2, 0) and not sum(count for count, _ in scored[1:])
    assert all(each.logprobs and len(each.logprobs) == 1 for each in run.outputs["a"])


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("fails", "after"),
    [("fill_mask", 0), ("fill_mask", 2), ("accept", 0), ("accept", 3), ("forced", 0), ("forced", 2),
     ("nothing allowed", 0), ("nothing allowed", 2)],
)  # fmt: skip
def test_a_matcher_that_fails_ends_its_request_alone(overlap: bool, fails: str, after: int) -> None:
    run = Run(disable_overlap_schedule=not overlap)
    automaton = chain([20] * 10, EOS, free_at=range(10), ways=3)
    run.add("bad", [5, 6, 7], automaton, matcher=AutomatonMatcher(automaton, fails, after))
    run.add("good", [5, 6, 8], automaton)
    run.add("free", [5, 6, 9])
    run.all()
    error = run.end("bad").error
    assert run.end("bad").finish_reason == FinishReason.ERROR and error is not None
    assert ("no token" if fails == "nothing allowed" else f"{fails} went wrong") in error
    for name in ("good", "free"):
        assert run.tokens(name) == run.expected(name)
    assert run.engine.stats().errors == 1 and run.engine.stats().step_failures == 0


def test_an_abort_while_the_step_is_in_flight() -> None:
    run = Run()
    for name in "ab":
        run.add(name, [5, 6, ord(name) - 90], chain([20] * 10, EOS, free_at=range(10)))
    run.step()
    run.step()
    run.engine.abort("a")
    run.all()
    assert run.end("a").finish_reason == FinishReason.ABORT
    assert run.tokens("b") == run.expected("b")


def test_a_device_that_fails_to_sample_ends_the_steps_requests() -> None:
    run = Run()
    run.add("a", [5, 6, 7], chain([20] * 10, EOS, free_at=range(10)))
    run.step()
    run.runner.fail_constrain = True
    run.all()
    assert run.end("a").error == "the step failed on the device: no memory"
    run.add("b", [5, 6, 7], WORDS)
    assert run.all().tokens("b") == run.expected("b")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32), overlap=st.booleans(), jump=st.booleans(), cache=st.booleans(),
    pages=st.sampled_from([12, 20, 64]), rows=st.sampled_from([1, 3, 8]), chunk=st.sampled_from([1, 5, 32]),
)  # fmt: skip
def test_any_automaton_under_any_plan(
    seed: int, overlap: bool, jump: bool, cache: bool, pages: int, rows: int, chunk: int
) -> None:
    """Whatever the options and however often it is preempted, a request's tokens are the oracle's, which
    knows of no plan; those of free ones too."""
    rng = random.Random(seed)
    run = Run(
        pages=pages, rows=min(rows, chunk), chunk=chunk, disable_overlap_schedule=not overlap,
        disable_jump_forward=not jump, disable_radix_cache=not cache,
    )  # fmt: skip
    stem = [rng.randrange(VOCAB) for _ in range(12)]
    for index in range(rng.randrange(1, 9)):
        automaton = random_automaton(rng, VOCAB, EOS) if rng.random() < 0.7 else None
        run.add(
            f"{index}",
            stem[: rng.randrange(1, 13)] + [rng.randrange(VOCAB) for _ in range(rng.randrange(3))],
            automaton,
            rng.choice([1, 7, 30]),
            seed=rng.choice([None, rng.randrange(100)]),
            stop_token_ids=tuple(rng.sample(range(VOCAB), rng.choice([0, 0, 3]))),
            logprobs=rng.choice([None, None, None, 1]),
            prompt_logprobs=rng.choice([None, None, None, 1]),
        )
        for _ in range(rng.choice([0, 1, 4])):
            run.step()
    run.all()
    for name, (_, automaton) in run.asked.items():
        assert run.tokens(name) == run.expected(name)
        assert automaton is None or automaton.accepts(run.tokens(name))
    stats = run.engine.stats()
    assert stats.step_failures == stats.errors == stats.integrity_violations == 0
    assert stats.generation_tokens == sum(len(run.tokens(name)) for name in run.asked)
