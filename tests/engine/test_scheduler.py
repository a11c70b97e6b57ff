"""The scheduler, driven through the engine's loop with the fake runner, whose tokens the oracle knows."""

import random

import pytest

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.engine.batch import ScheduleBatch
from radixmesh.engine.errors import QueueFullError, RequestError
from radixmesh.engine.request import FinishReason
from tests.engine.driving import EOS, VOCAB, Run, make_engine, make_request


def random_prompts(rng, count, longest=60):
    """Prompts of which many share a prefix."""
    stems = [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, longest))] for _ in range(4)]
    prompts = []
    for _ in range(count):
        stem = rng.choice(stems)
        cut = rng.randrange(len(stem)) + 1
        prompts.append(stem[:cut] + [rng.randrange(VOCAB) for _ in range(rng.randrange(longest - cut + 1))])
    return prompts


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(("chunk", "pages"), [(16, 200), (64, 200), (16, 30), (64, 22), (33, 20)])
def test_outputs_equal_the_oracle(overlap, cache, chunk, pages):
    rng = random.Random(chunk * pages)
    engine = make_engine(
        pages=pages,
        chunk=chunk,
        rows=12,
        eos_every=20,
        disable_overlap_schedule=not overlap,
        disable_radix_cache=not cache,
    )
    run = Run(engine)
    prompts = random_prompts(rng, 60, longest=50)
    lengths = [rng.randrange(1, 30) for _ in prompts]
    for index, prompt in enumerate(prompts):
        engine.add_request(make_request(index, prompt, lengths[index], eos=[EOS]))
        if rng.random() < 0.5:
            run.step()
    run.all()
    for index, prompt in enumerate(prompts):
        length = min(lengths[index], pages * 4 - len(prompt))
        want = expected_tokens(prompt, length, VOCAB, eos_token_id=EOS, eos_every=20, stop=[EOS])
        assert run.tokens[str(index)] == want
        reason = FinishReason.STOP if want[-1] == EOS else FinishReason.LENGTH
        assert run.last[str(index)].finish_reason == reason
    assert (engine.stats().preemptions > 0) == (pages < 100)
    assert (engine.stats().cached_tokens > 0) == cache


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "dfs-weight", "priority", "random"])
@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_policies_with_random_aborts(policy, eviction):
    rng = random.Random(1)
    engine = make_engine(
        pages=40, eos_every=30, schedule_policy=policy, radix_eviction_policy=eviction, random_seed=1
    )
    run = Run(engine)
    prompts = random_prompts(rng, 300, longest=40)
    aborted = set()
    for index, prompt in enumerate(prompts):
        engine.add_request(make_request(index, prompt, 20, eos=[EOS], priority=rng.randrange(3)))
        if rng.random() < 0.7:
            run.step()
        if rng.random() < 0.3:
            victim = str(rng.randrange(index + 1))
            alive = victim in engine.schedulers[0].requests
            assert engine.abort(victim) == alive
            run.check()
            if alive:
                aborted.add(victim)
                assert victim not in engine.schedulers[0].requests
    run.all()
    assert sorted(run.finished, key=int) == [str(index) for index in range(300)]
    assert len(aborted) > 30
    for index, prompt in enumerate(prompts):
        want = expected_tokens(prompt, 20, VOCAB, eos_token_id=EOS, eos_every=30, stop=[EOS])
        if str(index) in aborted:
            assert run.last[str(index)].finish_reason == FinishReason.ABORT
            assert run.tokens[str(index)] == want[: len(run.tokens[str(index)])]
        else:
            assert run.tokens[str(index)] == want


def record_batches(engine):
    batches: list[ScheduleBatch] = []
    forward = engine.runner.forward

    def recorded(step):
        batches.extend(step)
        return forward(step)

    engine.runner.forward = recorded
    return batches


def test_budget_and_order_within_a_step():
    """Decode rows first, prefill chunks of several requests after, never beyond the budget."""
    engine = make_engine(pages=400, chunk=24, rows=16, context=300)
    batches = record_batches(engine)
    run = Run(engine)
    engine.add_request(make_request("first", range(10), 40))
    for _ in range(3):
        run.step()
    engine.add_request(make_request("long", range(100, 200), 4))
    for index in range(6):
        engine.add_request(make_request(index, [500 + index] * 6, 10))
    run.all()
    assert max(batch.num_tokens for batch in batches) == 24
    with_first = [batch for batch in batches[1:40] if any(row.id == "first" for row in batch.rows)]
    assert len(with_first) == 39  # the long prefill never keeps the decode row waiting
    assert any(len(batch.rows) - batch.num_decode_rows > 2 for batch in batches)
    assert any(0 < batch.num_decode_rows < len(batch.rows) for batch in batches)
    # while the long prompt is prefilled, all of the budget is used
    for batch in batches[3:6]:
        assert batch.num_tokens == 24


def test_decode_does_not_starve_prefill_when_rows_fill_the_budget():
    engine = make_engine(pages=200, chunk=4, rows=16)
    assert engine.schedulers[0].max_rows == 4
    run = Run(engine)
    for index in range(12):
        engine.add_request(make_request(index, [index + 1] * 9, 30))
    run.all()
    assert len(run.finished) == 12


def test_limit_on_page_table_entries():
    """Shared pages count once for each row, so entries can run out before pages do."""
    engine = make_engine(pages=40, rows=16, chunk=64, indices=40)
    run = Run(engine)
    prompt = list(range(60))
    for index in range(10):
        engine.add_request(make_request(index, prompt + [index], 30))
    run.all()  # the fake runner refuses a step beyond the limit
    for index in range(10):
        assert run.tokens[str(index)] == expected_tokens([*prompt, index], 30, VOCAB)


def test_n_requests_of_one_prompt_share_its_pages():
    engine = make_engine(pages=64, chunk=64, rows=16)
    run = Run(engine)
    prompt = list(range(40))  # ten full pages; the last one is computed by each, for its last token
    for index in range(8):
        engine.add_request(make_request(f"p-{index}", prompt, 4, parent="p", temperature=1.0, seed=index))
    run.step()
    assert engine.stats().num_running == 1  # the others wait for its pages
    run.step()
    assert engine.stats().num_running == 8
    run.all()
    assert engine.stats().cached_tokens == 7 * 36
    for index in range(8):
        assert run.tokens[f"p-{index}"] == expected_tokens(prompt, 4, VOCAB, seed=index)
    assert len({tuple(run.tokens[f"p-{index}"]) for index in range(8)}) > 1


def test_identical_prompts_are_not_serialised():
    """Only a page that can be found afterwards is waited for."""
    for length in range(1, 14):
        engine = make_engine(pages=200, chunk=64, rows=16)
        run = Run(engine)
        for index in range(10):
            engine.add_request(make_request(index, range(length), 30))
        run.step()
        run.step()
        assert engine.stats().num_running == 10, length
        run.all()


def test_extra_key_keeps_prefixes_apart():
    engine = make_engine()
    run = Run(engine)
    for key in ("", "a", "", "a"):
        engine.add_request(make_request(f"{key}{len(run.finished)}", range(20), 2, extra_key=key))
        run.all()
    assert [run.last[name].num_cached_tokens for name in ("0", "a1", "2", "a3")] == [0, 0, 16, 16]


def test_output_pages_are_cached_for_the_next_turn():
    engine = make_engine()
    run = Run(engine)
    engine.add_request(make_request("first", range(10), 20))
    run.all()
    second = [*range(10), *run.tokens["first"], 5, 6, 7]
    engine.add_request(make_request("second", second, 2))
    run.all()
    assert run.last["second"].num_cached_tokens == 28  # 29 tokens had KV: seven pages
    assert run.tokens["second"] == expected_tokens(second, 2, VOCAB)


def test_preemption_keeps_finished_pages():
    """Coming back is mostly a cache hit: much less is computed again than with the cache off."""
    again = []
    for disabled in (False, True):
        engine = make_engine(pages=44, rows=4, chunk=64, disable_radix_cache=disabled)
        run = Run(engine)
        for index in range(4):
            engine.add_request(make_request(index, [index + 1] * 8, 40))
        run.all()
        stats = engine.stats()
        assert stats.preemptions > 0
        assert stats.prompt_tokens == 32  # counted once, however often a request comes back
        for index in range(4):
            assert run.tokens[str(index)] == expected_tokens([index + 1] * 8, 40, VOCAB)
        again.append(stats.scheduled_tokens - 4 * 47)  # the last token of each is never computed
    assert 0 < again[0] < again[1] / 2


def test_priority_runs_first_and_is_preempted_last():
    engine = make_engine(pages=24, rows=8, chunk=64, schedule_policy="priority")
    run = Run(engine)
    for index in range(6):
        engine.add_request(make_request(f"low{index}", [index + 1] * 12, 30))
    run.step()
    for index in range(2):
        engine.add_request(make_request(f"high{index}", [index + 50] * 12, 30, priority=5))
    preempted = set()
    while engine.has_work:
        run.step()
        preempted |= {each.id for each in engine.schedulers[0].waiting if each.num_preemptions}
    assert preempted and not any(name.startswith("high") for name in preempted)
    position = {name: place for place, name in enumerate(run.finished)}
    assert position["high0"] < 5 and position["high1"] < 5


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight", "priority", "random"])
def test_no_request_waits_for_ever(policy):
    """A stream of requests that the policy prefers does not keep one out."""
    engine = make_engine(pages=64, rows=2, chunk=64, schedule_policy=policy, random_seed=0)
    run = Run(engine, deep=False)
    stem = list(range(40))
    engine.add_request(make_request("warm", [*stem, 1], 1))
    run.all()
    engine.add_request(make_request("poor", [900] * 30, 1, priority=-1))
    for index in range(1500):
        engine.add_request(make_request(index, [*stem, index % VOCAB], 1, priority=1))
        run.step()
        if "poor" in run.finished:
            break
    assert "poor" in run.finished


@pytest.mark.slow
def test_simulated_trace_of_ten_thousand_requests():
    rng = random.Random(7)
    engine = make_engine(pages=800, rows=64, chunk=256, eos_every=60, max_queued_requests=20_000)
    run = Run(engine, deep=False)
    prompts = random_prompts(rng, 10_000, longest=60)
    lengths = [min(int(rng.expovariate(1 / 20)) + 1, 100) for _ in prompts]
    arrivals = iter(enumerate(prompts))
    busiest = 0
    while len(run.finished) < len(prompts):
        for _ in range(rng.choice([0, 0, 5, 15])):
            entry = next(arrivals, None)
            if entry:
                engine.add_request(make_request(entry[0], entry[1], lengths[entry[0]], eos=[EOS]))
        run.step()
        busiest = max(busiest, engine.schedulers[0].num_running)
        if engine.schedulers[0].counters.steps % 200 == 0:
            engine.schedulers[0].cache.check_integrity()
    run.all()
    assert busiest > 48
    for index, prompt in enumerate(prompts):
        want = expected_tokens(prompt, lengths[index], VOCAB, eos_token_id=EOS, eos_every=60, stop=[EOS])
        assert run.tokens[str(index)] == want


def test_minimum_length_forbids_what_would_end_it():
    engine = make_engine(eos_every=2)
    run = Run(engine)
    for index in range(6):
        request = make_request(index, [index] * 5, 30, eos=[EOS], min_new_tokens=12, stop_token_ids=(7,))
        engine.add_request(request)
    run.all()
    for index in range(6):
        want = expected_tokens(
            [index] * 5, 30, VOCAB, eos_token_id=EOS, eos_every=2, stop=[EOS, 7], min_new_tokens=12
        )
        assert run.tokens[str(index)] == want
        assert len(want) > 12 and run.last[str(index)].matched_stop == want[-1]


def test_ignore_eos_and_stop_token():
    engine = make_engine(eos_every=3)
    run = Run(engine)
    engine.add_request(make_request("ignore", range(5), 25, eos=[EOS], ignore_eos=True))
    free = expected_tokens(range(5), 25, VOCAB, eos_token_id=EOS, eos_every=3)
    assert EOS in free
    stop = next(token for token in free[3:] if token != EOS)
    engine.add_request(make_request("stop", range(5), 25, eos=[EOS], ignore_eos=True, stop_token_ids=(stop,)))
    run.all()
    assert run.tokens["ignore"] == free
    assert run.tokens["stop"] == free[: free.index(stop) + 1]
    assert (run.last["stop"].finish_reason, run.last["stop"].matched_stop) == (FinishReason.STOP, stop)


@pytest.mark.parametrize(
    ("rows", "variant"),
    [
        ([{}], 0),
        ([{}, {"temperature": 0.7}], 1),
        ([{"temperature": 0.7, "top_k": 1}], 0),
        ([{"temperature": 0.7}, {"logit_bias": {5: -100}}], 2),
        ([{"logprobs": 0}], 2),
        ([{"frequency_penalty": 0.5}], 2),
    ],
)
def test_sampler_variant_is_the_cheapest_that_serves_all_rows(rows, variant):
    engine = make_engine()
    for index, params in enumerate(rows):
        engine.add_request(make_request(index, [index + 1] * 3, 2, **params))
    batch = engine.schedulers[0].schedule()
    assert batch is not None and batch.variant == variant


def test_bias_entries_name_their_rows():
    engine = make_engine()
    engine.add_request(make_request("a", [1, 2], temperature=0.7))
    engine.add_request(make_request("b", [3, 4], logit_bias={5: -100, 6: 2.5}))
    engine.add_request(make_request("c", [5, 6], eos=[EOS], min_new_tokens=1, stop_token_ids=(7,)))
    batch = engine.schedulers[0].schedule()
    assert batch is not None
    sampling = batch.sampling
    entries = zip(sampling.bias_rows, sampling.bias_ids, sampling.bias_values, strict=True)
    infinity = float("inf")
    assert set(entries) == {(1, 5, -100), (1, 6, 2.5), (2, 7, -infinity), (2, EOS, -infinity)}


def test_max_new_tokens_is_clipped_to_context_and_pool():
    run = Run(make_engine(context=20))
    run.engine.add_request(make_request("a", range(12), None))
    run.engine.add_request(make_request("b", range(12), 1000))
    run.all()
    assert len(run.tokens["a"]) == len(run.tokens["b"]) == 8
    assert run.last["a"].finish_reason == FinishReason.LENGTH
    run = Run(make_engine(pages=4))
    run.engine.add_request(make_request("a", range(12), None))
    run.all()
    assert len(run.tokens["a"]) == 4


@pytest.mark.parametrize(
    ("prompt", "params", "field", "words"),
    [
        ([], {}, "prompt", "no tokens"),
        ([1, VOCAB], {}, "prompt", f"the token id {VOCAB}"),
        ([-1], {}, "prompt", "the token id -1"),
        (list(range(50)), {}, "prompt", "the context holds 50"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, "logit_bias", "accepted are 0 to 996"),
        ([1], {"stop_token_ids": (VOCAB,)}, "stop_token_ids", "accepted are 0 to 996"),
    ],
)
def test_requests_that_can_never_be_served_are_refused(prompt, params, field, words):
    engine = make_engine(context=50)
    with pytest.raises(RequestError, match=words) as caught:
        engine.add_request(make_request("x", prompt, **params))
    assert (caught.value.field, caught.value.status) == (field, 400)
    assert not engine.has_work


def test_prompt_larger_than_the_pool_is_refused():
    engine = make_engine(pages=4)
    with pytest.raises(RequestError, match="the KV pool holds 16, so accepted are at most 15"):
        engine.add_request(make_request("x", range(16)))
    engine.add_request(make_request("y", range(15), 5))
    assert len(Run(engine).all().tokens["y"]) == 1


def test_queue_is_bounded_and_ids_are_unique():
    engine = make_engine(max_queued_requests=2)
    engine.add_request(make_request("a", [1]))
    with pytest.raises(RequestError, match="in use") as caught:
        engine.add_request(make_request("a", [1]))
    assert caught.value.field == "request_id"
    engine.add_request(make_request("b", [1]))
    with pytest.raises(QueueFullError, match="max_queued_requests is 2"):
        engine.add_request(make_request("c", [1]))
    Run(engine).all()
    engine.add_request(make_request("a", [1]))  # free again


def test_a_request_that_cannot_be_prepared_ends_alone():
    run = Run(make_engine())
    run.engine.add_request(make_request("good", range(9)))
    run.engine.add_request(make_request("bad", range(9), seed=-5))  # does not fit uint32
    run.engine.add_request(make_request("fine", range(8)))
    run.all()
    assert run.last["bad"].finish_reason == FinishReason.ERROR
    assert "could not be prepared" in str(run.last["bad"].error)
    assert run.tokens["good"] == expected_tokens(range(9), 8, VOCAB)
    assert run.tokens["fine"] == expected_tokens(range(8), 8, VOCAB)
