"""Log probabilities on their way through the scheduler, of the fake runner, whose own are known."""

import pytest

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.engine.errors import RequestError
from tests.engine.driving import VOCAB, Run, make_engine, make_request


def test_logprobs_only_for_those_who_asked():
    engine = make_engine()
    run = Run(engine)
    engine.add_request(make_request("none", range(5), 1))
    engine.add_request(make_request("own", range(6), 1, logprobs=0))
    engine.add_request(make_request("three", range(7), 1, logprobs=3))
    run.all()
    assert run.last["none"].logprobs is None
    own, three = ((run.last[name].logprobs or [])[0] for name in ("own", "three"))
    assert own.logprob == -0.5 and own.top_ids == []
    assert len(three.top_ids) == len(three.top_logprobs) == 3


def test_logprobs_of_ids_that_a_request_asks_for():
    engine = make_engine()
    run = Run(engine)
    engine.add_request(make_request("plain", range(5), 4, logprobs=0))
    engine.add_request(make_request("asks", range(7), 4, logprobs=1, logprob_token_ids=(5, 0, 996)))
    run.all()
    assert [each.asked for each in run.last["plain"].logprobs or []] == [[]]
    assert run.tokens["asks"] == expected_tokens(range(7), 4, VOCAB)
    likeliest = run.tokens["asks"][-1]
    (last,) = run.last["asks"].logprobs or []
    assert last.asked == [-0.5 - (token - likeliest) % VOCAB for token in (5, 0, 996)]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logprobs": None, "logprob_token_ids": (1,)}, "only with logprobs"),
        ({"logprobs": 0, "logprob_token_ids": (-1,)}, "token ids"),
        ({"logprobs": 0, "logprob_token_ids": tuple(range(65))}, "at most 64"),
        ({"logprobs": 0, "logprob_token_ids": (997,)}, "0 to 996"),
    ],
)
def test_ids_whose_logprobs_cannot_be_had(params, message):
    with pytest.raises(RequestError, match=message) as caught:
        make_engine().add_request(make_request("a", [1], **params))
    assert caught.value.field == "logprob_token_ids"
