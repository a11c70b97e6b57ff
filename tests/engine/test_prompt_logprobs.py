"""Prompt logprobs through the scheduler: whatever the chunks, the cache, the batch and preemption."""

import random
from dataclasses import dataclass, field

import pytest

from radixmesh.backends.fake.oracle import expected_prompt_logprobs, expected_tokens
from radixmesh.engine.errors import RequestError
from tests.engine.driving import VOCAB, Run, make_engine, make_request


@dataclass
class Scores(Run):
    """A run that keeps prompt logprobs, which come once."""

    scores: dict[str, list[tuple[float, list[int], list[float]]]] = field(default_factory=dict)

    def step(self):
        outputs = super().step()
        for output in outputs:
            if output.prompt_logprobs is not None:
                assert output.request_id not in self.scores, "prompt logprobs come once"
                self.scores[output.request_id] = [
                    (each.logprob, each.top_ids, each.asked) for each in output.prompt_logprobs
                ]
        return outputs


def some_prompt(length, seed=0):
    return [random.Random(seed).randrange(VOCAB) for _ in range(length)]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("chunk", "rows"), [(32, 16), (32, 3), (5, 16), (4, 4), (1, 1)])
@pytest.mark.parametrize("start", [0, 1, 11, 28, 29])
def test_every_prompt_token_is_scored_once(chunk, rows, start, overlap):
    """Of any chunk size, and of fewer logits rows than a chunk has tokens."""
    engine = make_engine(chunk=chunk, rows=rows, disable_overlap_schedule=not overlap)
    run, prompt = Scores(engine), some_prompt(30)
    engine.add_request(
        make_request("a", prompt, 5, prompt_logprobs=2, prompt_logprob_start=start, logprobs=0)
    )
    run.all()
    assert run.tokens["a"] == expected_tokens(prompt, 5, VOCAB)
    # with nothing to score nothing is told
    assert run.scores.get("a", []) == expected_prompt_logprobs(prompt, VOCAB, top=2)[start:]


def test_a_chunk_takes_no_more_logits_than_are_left():
    engine = make_engine(chunk=32, rows=8)
    run = Scores(engine)
    engine.add_request(make_request("decodes", some_prompt(3, 1), 40))
    for _ in range(3):
        run.step()
    engine.add_request(make_request("scored", some_prompt(30), 1, prompt_logprobs=0))
    engine.add_request(make_request("after", some_prompt(9, 2), 3))
    sizes = []
    while not run.scores:
        before = engine.schedulers[0].requests["scored"].num_computed_tokens
        run.step()
        if "scored" in engine.schedulers[0].requests:
            sizes.append(engine.schedulers[0].requests["scored"].num_computed_tokens - before)
    assert [each for each in sizes if each] == [7, 7, 7, 7, 2]  # one of the eight is the row that decodes
    run.all()
    for name, prompt, count in (("decodes", some_prompt(3, 1), 40), ("after", some_prompt(9, 2), 3)):
        assert run.tokens[name] == expected_tokens(prompt, count, VOCAB)


def test_a_warm_cache_serves_what_comes_before_the_start():
    engine = make_engine()
    run, prompt = Scores(engine), some_prompt(30)
    engine.add_request(make_request("warms", prompt, 1))
    run.all()
    for start, cached in ((0, 0), (9, 8), (29, 28)):
        engine.add_request(make_request(start, prompt, 4, prompt_logprobs=0, prompt_logprob_start=start))
        run.all()
        assert run.last[str(start)].num_cached_tokens == cached
        assert run.scores.get(str(start), []) == expected_prompt_logprobs(prompt, VOCAB)[start:]
        assert run.tokens[str(start)] == expected_tokens(prompt, 4, VOCAB)
    engine.add_request(make_request("plain", prompt, 4))
    run.all()
    assert run.last["plain"].num_cached_tokens == 28


def test_pages_of_a_scored_prompt_are_cached():
    engine = make_engine()
    run, prompt = Scores(engine), some_prompt(30)
    engine.add_request(make_request("scored", prompt, 1, prompt_logprobs=0))
    run.all()
    engine.add_request(make_request("plain", prompt, 4))
    run.all()
    assert run.last["plain"].num_cached_tokens == 28


@pytest.mark.parametrize("seed", range(12))
def test_neither_preemption_nor_neighbours_change_them(seed):
    """Requests that share prefixes, scored or not, in a pool that is too small for them."""
    rng = random.Random(seed)
    rows = rng.choice([3, 6, 12])
    engine = make_engine(
        pages=rng.choice([18, 24, 30]),
        chunk=rng.choice([8, 16, 32]),
        rows=rows,
        disable_overlap_schedule=rng.random() < 0.3,
        disable_radix_cache=rng.random() < 0.2,
        schedule_policy=rng.choice(["fcfs", "lpm"]),
    )
    run, wanted, expected = Scores(engine), {}, {}
    stem = some_prompt(24, seed)
    for index in range(24):
        prompt = stem[: rng.randrange(1, 24)] + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 24))]
        count = rng.randrange(1, 20)
        given = {}
        if rng.random() < 0.6:
            asked = tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(3)))
            start = rng.choice([0, 0, rng.randrange(len(prompt))])
            top = rng.randrange(3)
            given = {"prompt_logprobs": top, "prompt_logprob_start": start, "logprob_token_ids": asked}
            wanted[str(index)] = expected_prompt_logprobs(prompt, VOCAB, top=top, asked=asked)[start:]
        given |= rng.choice([{}, {"logprobs": 1}, {"logit_bias": {5: -100}}, {"min_new_tokens": 1}])
        engine.add_request(make_request(index, prompt, count, **given))
        for _ in range(rng.randrange(3)):
            run.step()
        if "logit_bias" not in given:
            run.tokens.setdefault(str(index), [])
            expected[str(index)] = expected_tokens(prompt, count, VOCAB)
    run.all()
    assert {name: run.tokens[name] for name in expected} == expected
    assert {name: run.scores.get(name, []) for name in wanted} == wanted


def test_some_of_these_were_preempted_while_they_were_scored():
    engine = make_engine(pages=12, chunk=8, rows=4)
    run = Scores(engine)
    first, second = some_prompt(12, 1), some_prompt(30, 2)
    engine.add_request(make_request("first", first, 30))
    run.step()
    engine.add_request(make_request("second", second, 3, prompt_logprobs=1))
    second_request = engine.schedulers[0].requests["second"]
    run.all()
    assert second_request.num_preemptions and second_request.num_scored == 29
    assert run.scores["second"] == expected_prompt_logprobs(second, VOCAB, top=1)
    assert run.tokens["first"] == expected_tokens(first, 30, VOCAB)
    assert run.tokens["second"] == expected_tokens(second, 3, VOCAB)


def test_an_abort_in_the_middle_of_the_prompt_ends_it_alone():
    engine = make_engine(chunk=4)
    run = Scores(engine)
    engine.add_request(make_request("a", some_prompt(30), 3, prompt_logprobs=0))
    engine.add_request(make_request("b", some_prompt(9, 1), 3, prompt_logprobs=0))
    run.step()
    run.step()
    engine.abort("a")
    run.all()
    assert run.scores == {"b": expected_prompt_logprobs(some_prompt(9, 1), VOCAB)}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21"),
        ({"prompt_logprob_start": 1}, "only with prompt_logprobs"),
        ({"prompt_logprobs": 0, "prompt_logprob_start": 2}, "at most 1"),
        ({"prompt_logprobs": 0, "prompt_logprob_start": -1}, "prompt_logprob_start is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused(params, message):
    with pytest.raises(RequestError, match=message):
        make_engine().add_request(make_request("a", [1, 2], **params))
