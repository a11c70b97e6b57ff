"""What every runner owes the engine: a request's tokens do not depend on how its steps were planned.

Steps are planned here by hand, not by the scheduler; the runners are in `contract_cases.py`. A runner is made
once and used by all tests, so pages and slots are full of what others left.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from radixmesh.engine.batch import StepTokens
from radixmesh.engine.request import MAX_TOP_LOGPROBS
from radixmesh.engine.runner import PendingTokens
from tests.backends.contract_cases import RUNNERS, Case
from tests.planned_steps import FULL, GREEDY, SAMPLE, Part, Row, plan, with_scores

Launched = tuple[list[list[Row]], PendingTokens]  # each group's rows that sample


class Bench:
    """Plans steps by hand and runs them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.runner = case.create()
        self.runner.warmup()
        self.capacity = self.runner.capacity
        self.steps = 0
        self.rng = random.Random(0)

    def pages(self) -> Iterator[int]:
        """Every page once, in no order."""
        ids = list(range(self.capacity.num_pages))
        self.rng.shuffle(ids)
        return iter(ids)

    def pages_for(self, num_tokens: int, free: Iterator[int]) -> list[int]:
        return list(islice(free, -(-num_tokens // self.capacity.page_size)))

    def prompt(self, length: int, salt: int = 0) -> list[int]:
        rng = random.Random(1000 * length + salt)
        return [rng.randrange(self.case.vocab_size) for _ in range(length)]

    def launch(self, *parts: Part, hold: bool = False) -> Launched:
        """A step in which the last group computes `parts`, and others nothing."""
        return self.launch_groups([()] * (self.capacity.num_groups - 1) + [parts], hold)

    def launch_groups(self, groups: Sequence[Sequence[Part]], hold: bool = False) -> Launched:
        """A step in which each group computes its parts, if it has any. `hold` leaves masks to the caller."""
        plans = [
            plan(self.steps, parts, self.capacity.page_size) if parts else (None, []) for parts in groups
        ]
        self.steps += 1
        for parts, (_, sampled) in zip(groups, plans, strict=True):
            for row, count in parts:
                row.computed += count
                row.in_flight += row in sampled
        wanted = [sampled for _, sampled in plans]
        pending = self.runner.forward([batch for batch, _ in plans])
        if not hold and any(row.allowed is not None for sampled in wanted for row in sampled):
            pending.constrain(self.masks(wanted))
        return wanted, pending

    def masks(self, groups: Sequence[Sequence[Row]]) -> list[np.ndarray | None]:
        """What the constrained ones of each group's rows may sample."""
        allowed = [[row.allowed for row in sampled if row.allowed is not None] for sampled in groups]
        bits = [np.array([[i in ids for i in range(1024)] for ids in each], np.bool_) for each in allowed]
        packed = [
            np.packbits(each.reshape(-1, 1024), axis=1, bitorder="little").view(np.uint32) for each in bits
        ]
        return [each[:, : -(-self.case.vocab_size // 32)] if len(each) else None for each in packed]

    def collect(self, launched: Launched) -> StepTokens:
        """What the last group has sampled; every row gets its token."""
        groups, pending = launched
        for sampled, result in zip(groups, results := pending.result(), strict=True):
            assert result.token_ids.shape == (len(sampled),)
            for row, token in zip(sampled, result.token_ids.tolist(), strict=True):
                assert 0 <= token < self.case.vocab_size
                row.in_flight -= 1
                row.tokens.append(token)
                row.output.append(token)
        return results[-1]

    def run(self, *parts: Part) -> StepTokens:
        return self.collect(self.launch(*parts))

    def alone(self, prompt: Sequence[int], count: int, seed: int | None = None) -> list[int]:
        """The simplest plan: the whole prompt in one step, then a step for each token that the host knows."""
        variant = GREEDY if seed is None else SAMPLE
        free = self.pages()
        row = Row(list(prompt), self.pages_for(len(prompt) + count, free), 0, seed, variant=variant)
        self.run((row, len(prompt)))
        for _ in range(count - 1):
            self.run((row, 1))
        return row.output


@pytest.fixture(scope="module", params=RUNNERS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(RUNNERS[request.param]())
    yield made
    made.runner.close()


def test_the_simplest_plan_gives_what_the_oracle_says(bench: Bench) -> None:
    for seed in bench.case.seeds:
        for length in (1, 7, 8, 9, 20):
            prompt = bench.prompt(length)
            assert bench.alone(prompt, 6, seed) == bench.case.oracle(prompt, 6, seed)


@pytest.mark.parametrize("chunk", [1, 3, 8, 9, 16])
def test_prefill_in_chunks_is_prefill_in_one(bench: Bench, chunk: int) -> None:
    prompt = bench.prompt(21)
    row = Row(list(prompt), bench.pages_for(26, bench.pages()), 1)
    while row.computed < len(prompt):
        bench.run((row, min(chunk, len(prompt) - row.computed)))
    for _ in range(3):
        bench.run((row, 1))
    assert row.output == bench.alone(prompt, 4)


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_steps_take_effect_in_order_before_anyone_asks_for_results(bench: Bench, ahead: int) -> None:
    """Decode rows take their token from the slot; the host runs `ahead` steps ahead."""
    prompts = [bench.prompt(11), bench.prompt(4)]
    free = bench.pages()
    rows = [Row(list(prompt), bench.pages_for(24, free), slot) for slot, prompt in enumerate(prompts, 1)]
    launched = [bench.launch(*((row, len(row.tokens)) for row in rows))]
    for _ in range(9):
        launched.append(bench.launch(*((row, 1) for row in rows)))
        if len(launched) > ahead:
            bench.collect(launched.pop(0))
    for each in launched:
        bench.collect(each)
    assert [row.output for row in rows] == [bench.alone(prompt, 10) for prompt in prompts]


def test_a_slot_keeps_its_token_while_others_step(bench: Bench) -> None:
    free = bench.pages()
    idle = Row(bench.prompt(10), bench.pages_for(16, free), 2)
    busy = Row(bench.prompt(6), bench.pages_for(16, free), 3)
    want = bench.alone(idle.tokens, 3), bench.alone(busy.tokens, 5)
    launched = [bench.launch((idle, 10), (busy, 6))]
    launched += [bench.launch((busy, 1)) for _ in range(3)]
    launched.append(bench.launch((busy, 1), (idle, 1)))
    launched.append(bench.launch((idle, 1)))
    for each in launched:
        bench.collect(each)
    assert (idle.output, busy.output) == want


def test_decode_and_prefill_in_one_step(bench: Bench) -> None:
    free = bench.pages()
    prompts = [bench.prompt(9), bench.prompt(17), bench.prompt(5)]
    first, second, third = (
        Row(list(prompt), bench.pages_for(24, free), slot) for slot, prompt in enumerate(prompts)
    )
    bench.run((first, 9))
    bench.run((first, 1), (second, 7))
    bench.run((first, 1), (second, 9), (third, 5))
    bench.run((third, 1), (first, 1), (second, 1))
    bench.run((second, 1), (third, 1))
    for row, prompt in zip((first, second, third), prompts, strict=True):
        assert row.output == bench.alone(prompt, len(row.output))
    assert [len(row.output) for row in (first, second, third)] == [4, 2, 3]


def test_pages_may_be_shared_and_lie_anywhere(bench: Bench) -> None:
    """Requests with the same beginning read the same pages, also while a third still prefills."""
    size = bench.capacity.page_size
    stem = bench.prompt(2 * size)
    free = bench.pages()
    owner = Row([*stem, 1, 2], bench.pages_for(3 * size, free), 0)
    bench.run((owner, len(owner.tokens)))
    tails = ([3], [4, 5, 6])
    sharers = [
        Row([*stem, *tail], [*owner.pages[:2], *bench.pages_for(size, free)], slot, computed=2 * size)
        for slot, tail in enumerate(tails, 1)
    ]
    bench.run((owner, 1), *((row, len(tail)) for row, tail in zip(sharers, tails, strict=True)))
    for _ in range(3):
        bench.run(*((row, 1) for row in (owner, *sharers)))
    assert owner.output == bench.alone([*stem, 1, 2], 5)
    for row, tail in zip(sharers, tails, strict=True):
        assert row.output == bench.alone([*stem, *tail], 4)


def test_pages_and_slot_change_hands_while_a_step_is_in_flight(bench: Bench) -> None:
    """What the former owner still writes comes before what the new owner writes."""
    pages = bench.pages_for(24, bench.pages())
    old = Row(bench.prompt(14), pages, 1)
    new = Row(bench.prompt(12), list(reversed(pages)), 1)
    want = bench.alone(old.tokens, 3), bench.alone(new.tokens, 4)
    launched = [bench.launch((old, 14)), bench.launch((old, 1)), bench.launch((old, 1))]
    launched += [bench.launch((new, 12)), *(bench.launch((new, 1)) for _ in range(3))]
    for each in launched:
        bench.collect(each)
    assert (old.output, new.output) == want


def test_groups_have_pages_and_slots_of_their_own(bench: Bench) -> None:
    """In the same steps every group computes a prompt of its own, on pages and a slot of the same numbers."""
    pages = bench.pages_for(16, bench.pages())
    rows = [Row(bench.prompt(9, group), pages, 1) for group in range(bench.capacity.num_groups)]
    want = [bench.alone(row.tokens, 4) for row in rows]
    for count in (9, 1, 1, 1):
        bench.collect(bench.launch_groups([[(row, count)] for row in rows]))
    assert [row.output for row in rows] == want


def test_a_step_may_sample_nothing(bench: Bench) -> None:
    row = Row(bench.prompt(12), bench.pages_for(16, bench.pages()), 0)
    want = bench.alone(row.tokens, 2)
    assert len(bench.run((row, 5)).token_ids) == 0
    bench.run((row, 7))
    bench.run((row, 1))
    assert row.output == want


def test_as_many_rows_and_tokens_as_the_capacity_says(bench: Bench) -> None:
    capacity = bench.capacity
    each = min(capacity.max_step_tokens // capacity.max_running_requests, 2 * capacity.page_size - 4)
    free = bench.pages()
    prompts = [bench.prompt(each, slot) for slot in range(capacity.max_running_requests)]
    rows = [Row(list(prompt), bench.pages_for(each + 3, free), slot) for slot, prompt in enumerate(prompts)]
    rows = [row for row in rows if len(row.pages) * capacity.page_size >= each + 3]
    bench.run(*((row, each) for row in rows))
    bench.run(*((row, 1) for row in rows))
    for row, prompt in zip(rows[:8], prompts, strict=False):
        assert row.output == bench.alone(prompt, 2)
    longest = min(capacity.max_step_tokens, capacity.num_pages * capacity.page_size - 2)
    row = Row(bench.prompt(longest), bench.pages_for(longest + 2, bench.pages()), 0)
    want = bench.alone(row.tokens, 2)
    bench.run((row, longest // 2))
    bench.run((row, longest - longest // 2))
    bench.run((row, 1))
    assert row.output == want


def test_a_seed_fixes_the_tokens_whatever_else_runs(bench: Bench) -> None:
    prompt = bench.prompt(10)
    free = bench.pages()
    seeds = (7, None, 8, 7)
    rows = [
        Row(list(prompt), bench.pages_for(24, free), slot, seed, variant=GREEDY if seed is None else SAMPLE)
        for slot, seed in enumerate(seeds)
    ]
    bench.run((rows[0], 10))
    bench.run((rows[0], 1), *((row, 10) for row in rows[1:]))
    for _ in range(10):
        bench.run(*((row, 1) for row in rows[::-1]))
    bench.run(*((row, 1) for row in rows[1:]))
    want = {seed: bench.alone(prompt, 12, seed) for seed in seeds}
    assert [row.output for row in rows] == [want[seed] for seed in seeds]
    assert want[7] != want[8]


def test_variants_agree_on_rows_that_ask_for_nothing(bench: Bench) -> None:
    """A greedy row is the same in a sampling step and in a full one."""
    prompt = bench.prompt(13)
    want = bench.alone(prompt, 4)
    for variant in (SAMPLE, FULL):
        row = Row(list(prompt), bench.pages_for(20, bench.pages()), 0, variant=variant)
        bench.run((row, 13))
        for _ in range(3):
            bench.run((row, 1))
        assert row.output == want


def test_a_forbidden_token_is_not_chosen_and_only_for_its_row(bench: Bench) -> None:
    prompt = bench.prompt(13)
    likeliest = bench.alone(prompt, 1)[0]
    free = bench.pages()
    plain = Row(list(prompt), bench.pages_for(16, free), 0, variant=FULL)
    other = replace(plain, tokens=list(prompt), pages=bench.pages_for(16, free), slot=1, output=[])
    other.forbidden = (likeliest,)
    bench.run((plain, 13), (other, 13))
    assert plain.output == [likeliest]
    assert other.output != [likeliest]


def test_logprobs_come_best_first(bench: Bench) -> None:
    row = Row(bench.prompt(9), bench.pages_for(16, bench.pages()), 0, variant=FULL)
    result = bench.run((row, 9))
    assert result.logprobs is not None and result.top_ids is not None and result.top_logprobs is not None
    assert result.top_ids.shape == result.top_logprobs.shape == (1, MAX_TOP_LOGPROBS)
    assert len(set(result.top_ids[0].tolist())) == MAX_TOP_LOGPROBS
    assert (np.diff(result.top_logprobs[0]) <= 0).all() and result.top_logprobs[0, 0] <= 0
    assert result.top_ids[0, 0] == row.output[0]  # greedy
    assert np.isclose(result.logprobs[0], result.top_logprobs[0, 0])


def test_logprobs_of_ids_that_rows_ask_for(bench: Bench) -> None:
    """Each row has as many as it asks for, whatever their rank, and its token is what it was without."""
    last = bench.case.vocab_size - 1
    prompts, asked = [bench.prompt(each) for each in (9, 5, 11)], [(), (3, last, 0), tuple(range(64))]
    want = [bench.alone(prompt, 2) for prompt in prompts]
    free = bench.pages()
    rows = [
        Row(list(prompt), bench.pages_for(16, free), slot, variant=FULL, asked=ids)
        for slot, (prompt, ids) in enumerate(zip(prompts, asked, strict=True))
    ]
    for counts in ([9, 5, 11], [1, 1, 1]):
        known = [list(row.tokens) for row in rows]
        got = bench.run(*zip(rows, counts, strict=True))
        for index, (tokens, ids) in enumerate(zip(known, asked, strict=True)):
            expected = bench.case.logprobs(tokens)[list(ids)]
            np.testing.assert_allclose(got.logprobs_of(index, 0, len(ids)).asked, expected, atol=2e-4)
    assert [row.output for row in rows] == want
    masked, tokens = replace(rows[1], allowed=(7, 8)), list(rows[1].tokens)
    found = bench.run((rows[0], 1), (masked, 1)).logprobs_of(1, 0, 3)
    assert masked.output[-1] in (7, 8)
    np.testing.assert_allclose(found.asked, bench.case.logprobs(tokens)[[3, last, 0]], atol=2e-4)


@pytest.mark.parametrize("chunks", [(5, 1, 4), (1, 3, 3, 3), (2, 1, 1, 1, 5)], ids=str)
def test_prompt_logprobs_and_the_rows_beside_them(bench: Bench, chunks: tuple[int, ...]) -> None:
    """The logits of every position of a prompt, chunk by chunk. Its own token, and those of a row that
    decodes, are what they are without."""
    capacity, places = bench.capacity, []
    prompt, other = bench.prompt(sum(chunks)), bench.prompt(7)
    want = [bench.alone(prompt, 1), bench.alone(other, len(chunks) + 1)]
    pages = bench.pages_for(40, bench.pages())
    beside, scored = Row(list(other), pages[:3], 1, variant=FULL), Row(list(prompt), pages[3:], 3)
    bench.run((beside, len(other)))
    for count in chunks:
        batch, sampled = plan(bench.steps, [(beside, 1), (scored, count)], capacity.page_size)
        batch = with_scores(batch, 1, prompt, capacity.max_running_requests)
        bench.steps += 1
        got = bench.runner.forward([*[None] * (capacity.num_groups - 1), batch]).result()[-1]
        given = batch.sampling.given_ids
        for row, token in zip(sampled, got.token_ids[given < 0].tolist(), strict=True):
            row.tokens, row.output = [*row.tokens, token], [*row.output, token]
        beside.computed, scored.computed = beside.computed + 1, scored.computed + count
        for index in np.flatnonzero(given >= 0).tolist():
            place, asked = int(batch.sampling.indices[index]), batch.sampling.asked_ids[index]
            logprobs = bench.case.logprobs(prompt[:place])
            found = got.logprobs_of(index, 20, 2)
            expected = [logprobs[prompt[place]], *np.sort(logprobs)[:-21:-1], *logprobs[asked]]
            np.testing.assert_allclose(
                [found.logprob, *found.top_logprobs, *found.asked], expected, atol=2e-4
            )
            np.testing.assert_allclose(logprobs[found.top_ids], found.top_logprobs, atol=2e-4)
            places.append(place)
    assert places == list(range(1, len(prompt)))
    assert [scored.output, beside.output] == want


def some_ids(bench: Bench, salt: int) -> tuple[int, ...]:
    """One to six ids, now and then the first or the last of all."""
    rng = random.Random(salt)
    ids = {rng.randrange(bench.case.vocab_size) for _ in range(rng.randrange(1, 6))}
    return tuple(ids | set(rng.choice([(), (), (0,), (bench.case.vocab_size - 1,)])))


def test_a_mask_leaves_the_likeliest_of_what_it_allows(bench: Bench) -> None:
    """Prefill and decode, of a row among free ones; the masks differ from step to step."""
    free = bench.pages()
    prompts = [bench.prompt(9), bench.prompt(12), bench.prompt(5)]
    before, masked, after = (
        Row(list(prompt), bench.pages_for(24, free), slot) for slot, prompt in enumerate(prompts)
    )
    for step in range(6):
        masked.allowed = some_ids(bench, step)
        scores = bench.case.scores(masked.tokens)
        bench.run(*((row, row.length - row.computed) for row in (before, masked, after)))
        assert masked.tokens[-1] == max(masked.allowed, key=lambda token: scores[token])
    for row, prompt in ((before, prompts[0]), (after, prompts[2])):
        assert row.output == bench.alone(prompt, 6)


def test_masks_come_when_the_step_before_is_known(bench: Bench) -> None:
    """As the engine does it: launch up to the logits, collect the step before, then bound the next."""
    free = bench.pages()
    prompts = [bench.prompt(10), bench.prompt(7)]
    masked, plain = (Row(list(each), bench.pages_for(24, free), slot) for slot, each in enumerate(prompts, 2))
    tokens = list(prompts[0])
    masked.allowed = some_ids(bench, 50)
    launched = None
    for step in range(6):
        parts = ((masked, masked.length - masked.computed), (plain, plain.length - plain.computed))
        following = bench.launch(*parts, hold=True)
        if launched is not None:
            bench.collect(launched)
        masked.allowed = some_ids(bench, 60 + step)
        scores = bench.case.scores(tokens)
        tokens.append(max(masked.allowed, key=lambda token: scores[token]))
        following[1].constrain(bench.masks(following[0]))
        launched = following
    assert launched is not None
    bench.collect(launched)
    assert masked.tokens == tokens
    assert plain.output == bench.alone(prompts[1], 6)


def test_masks_bound_sampled_rows_too(bench: Bench) -> None:
    """And a free row with a seed draws what it draws alone."""
    free, prompt, allowed = bench.pages(), bench.prompt(10), some_ids(bench, 7)
    masked = Row(list(prompt), bench.pages_for(24, free), 0, 11, variant=SAMPLE, allowed=allowed)
    plain = Row(list(prompt), bench.pages_for(24, free), 1, 12, variant=SAMPLE)
    for _ in range(8):
        bench.run(*((row, row.length - row.computed) for row in (plain, masked)))
    assert set(masked.output) <= set(allowed)
    assert plain.output == bench.alone(prompt, 8, 12)


def test_logprobs_of_a_masked_row_are_of_the_models_own_distribution(bench: Bench) -> None:
    free, prompt = bench.pages(), bench.prompt(9)
    rows = [Row(list(prompt), bench.pages_for(16, free), slot, variant=FULL) for slot in range(3)]
    own = bench.run((rows[0], 9))
    assert own.top_ids is not None and own.top_logprobs is not None
    rows[1].allowed = (int(own.top_ids[0, 2]),)
    rows[2].forbidden = (int(own.top_ids[0, 0]),)
    got = bench.run((rows[1], 9), (rows[2], 9))
    assert got.token_ids.tolist() == own.top_ids[0, [2, 1]].tolist()
    assert got.top_ids is not None and got.top_logprobs is not None and got.logprobs is not None
    assert (got.top_ids == own.top_ids[0]).all()
    assert np.allclose(got.top_logprobs, own.top_logprobs[0], atol=1e-5)
    assert np.allclose(got.logprobs, own.top_logprobs[0, [2, 1]], atol=1e-5)
