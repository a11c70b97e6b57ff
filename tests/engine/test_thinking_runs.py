"""Outputs that think before they answer, under any plan of the scheduler: the tokens are those of an oracle
that reads what may come off the whole output so far."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.engine.grammar.grammar import Thinking
from radixmesh.engine.grammar.marks import Words
from radixmesh.engine.grammar.thinking import AnyText, ThinkingMarks, ThinkingMatcher
from radixmesh.engine.grammar.vocabulary import Vocabulary
from radixmesh.engine.request import FinishReason, Request, SamplingParams
from tests.automaton import Automaton, chain, random_automaton
from tests.engine.test_constrained import EOS, VOCAB, Run

OVER = 91  # writes the end of thinking
WORDS = Words(
    Vocabulary(
        tuple(b"</think>" if index == OVER else bytes([index + 130]) for index in range(VOCAB)),
        frozenset(),
        frozenset([EOS]),
        lambda text: [OVER] if text == "</think>" else [],
    )
)
MARKS = ThinkingMarks(Thinking("", "</think>"), WORDS)
Allowed = Callable[[Sequence[int]], set[int]]


def allowed_by(automaton: Automaton | None, budget: int | None) -> Allowed:
    """What may follow an output that thinks first."""

    def allowed(output: Sequence[int]) -> set[int]:
        if OVER in output:
            answer = list(output)[list(output).index(OVER) + 1 :]
            return automaton.allowed(answer) if automaton else set(range(VOCAB))
        if budget is not None and len(output) >= budget:
            return {OVER}
        return set(range(VOCAB)) - ({EOS} if automaton else set())

    return allowed


def add(
    run: Run, asked: dict[str, tuple[Request, Allowed]], name: str, prompt: list[int],
    automaton: Automaton | None, budget: int | None, count: int = 30, seed: int | None = None,
    **params: object,
) -> None:  # fmt: skip
    params = {"temperature": 0.0 if seed is None else 1.0, "max_new_tokens": count, **params}
    request = Request(
        name, np.array(prompt, np.int32), SamplingParams(**params),  # type: ignore[arg-type]
        seed=seed or 0, eos_token_ids=frozenset({EOS}),
        matcher=ThinkingMatcher(MARKS, automaton or AnyText(), budget, automaton is None),
    )  # fmt: skip
    run.engine.add_request(request)
    asked[name] = request, allowed_by(automaton, budget)


def expected(run: Run, request: Request, allowed: Allowed) -> list[int]:
    params, prompt = request.params, request.prompt_ids.tolist()
    assert params.max_new_tokens is not None
    count = min(params.max_new_tokens, run.context - len(prompt))
    seed = None if params.greedy else request.seed
    stop = {EOS, *params.stop_token_ids}
    return expected_tokens(prompt, count, VOCAB, seed=seed, stop=stop, allowed=allowed)


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize("budget", [0, 1, 4, 29, 30, 100])
def test_budgets_are_kept_to_the_token(budget: int, jump: bool) -> None:
    run, asked = Run(disable_jump_forward=not jump), dict[str, tuple[Request, Allowed]]()
    add(run, asked, "a", [5, 6, 7], chain([10, 11, 12, 20], EOS, free_at=[3]), budget)
    add(run, asked, "b", [5, 6, 8], None, budget, stop_token_ids=(OVER,))
    run.add("free", [5, 6, 9])
    run.all()
    for name, (request, allowed) in asked.items():
        assert run.tokens(name) == expected(run, request, allowed)
    assert run.tokens("free") == run.expected("free")
    output = run.tokens("a")
    if budget < 30:
        assert output.index(OVER) <= budget
    elif OVER not in output:  # max_new_tokens comes first
        assert len(output) == 30 and run.end("a").finish_reason == FinishReason.LENGTH


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32), overlap=st.booleans(), jump=st.booleans(), cache=st.booleans(),
    pages=st.sampled_from([12, 20, 64]), rows=st.sampled_from([1, 3, 8]), chunk=st.sampled_from([1, 5, 32]),
)  # fmt: skip
def test_any_thinking_under_any_plan(
    seed: int, overlap: bool, jump: bool, cache: bool, pages: int, rows: int, chunk: int
) -> None:
    """Preempted requests go on where they were; rows beside them, held to something or free, are as ever."""
    rng = random.Random(seed)
    run = Run(
        pages=pages, rows=min(rows, chunk), chunk=chunk, disable_overlap_schedule=not overlap,
        disable_jump_forward=not jump, disable_radix_cache=not cache,
    )  # fmt: skip
    asked: dict[str, tuple[Request, Allowed]] = {}
    stem = [rng.randrange(VOCAB) for _ in range(12)]
    for index in range(rng.randrange(1, 9)):
        automaton = random_automaton(rng, VOCAB, EOS) if rng.random() < 0.7 else None
        prompt = stem[: rng.randrange(1, 13)] + [rng.randrange(VOCAB) for _ in range(rng.randrange(3))]
        given_seed, count = rng.choice([None, rng.randrange(100)]), rng.choice([1, 7, 30])
        if rng.random() < 0.3:
            run.add(f"plain {index}", prompt, automaton, count, seed=given_seed)
        else:
            budget = rng.choice([None, 0, 1, 3, 10])
            add(
                run, asked, f"{index}", prompt, automaton, budget, count, given_seed,
                logprobs=rng.choice([None, None, 1]),
            )  # fmt: skip
        for _ in range(rng.choice([0, 1, 4])):
            run.step()
    run.all()
    for name in run.asked:
        assert run.tokens(name) == run.expected(name)
    for name, (request, allowed) in asked.items():
        assert run.tokens(name) == expected(run, request, allowed)
    stats = run.engine.stats()
    assert stats.step_failures == stats.errors == stats.integrity_violations == 0
