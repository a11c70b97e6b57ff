"""Requests from prompts: ids, seeds, and every refusal with its field."""

from typing import Any

import numpy as np
import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND, IM_END, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import RequestError
from radixmesh.engine.request import SamplingParams
from radixmesh.engine.request_builder import RequestBuilder, child_seed, default_params
from radixmesh.engine.runner import ModelInfo
from radixmesh.engine.text.tokenizer import load_tokenizer

INFO = FAKE_BACKEND.describe(EngineConfig(context_length=100))


def builder(random_seed: int | None = None, with_tokenizer: bool = True) -> RequestBuilder:
    return RequestBuilder(INFO, load_tokenizer(str(TOKENIZER)) if with_tokenizer else None, random_seed)


def test_text_becomes_ids() -> None:
    (request,) = builder().build("hi", SamplingParams(), request_id="x", priority=3, extra_key="salt")
    assert request.prompt_ids.tolist() == [104, 105] and request.prompt_ids.dtype == np.int32
    assert (request.id, request.parent_id, request.priority, request.extra_key) == ("x", None, 3, "salt")
    assert request.eos_token_ids == {IM_END}


@pytest.mark.parametrize("prompt", [[1, 2], (1, 2), np.array([1, 2]), [np.int64(1), np.int32(2)]])
def test_ids_in_every_form(prompt: Any) -> None:
    assert builder(with_tokenizer=False).prompt_ids(prompt).tolist() == [1, 2]


def test_children_share_the_prompt_and_differ_in_seed() -> None:
    requests = builder().build([1], SamplingParams(n=3, sampling_seed=5), request_id="x")
    assert [request.id for request in requests] == ["x-0", "x-1", "x-2"]
    assert {request.parent_id for request in requests} == {"x"}
    assert [request.seed for request in requests] == [child_seed(5, index) for index in range(3)]
    assert len({request.seed for request in requests}) == 3
    assert all(request.prompt_ids is requests[0].prompt_ids for request in requests)
    (alone,) = builder().build([1], SamplingParams(n=1, sampling_seed=5), request_id="y")
    assert alone.seed == requests[0].seed


def test_seeds_are_splitmix64() -> None:
    """The published outputs for the state 1234567."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [child_seed(1234567, index) for index in range(3)] == [value >> 32 for value in outputs]


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_seeds_fit_a_uint32(seed: int) -> None:
    assert 0 <= child_seed(seed, 127) < 2**32


def test_drawn_seeds_follow_the_engines() -> None:
    def draw(random_seed: int | None) -> list[int]:
        one = builder(random_seed)
        return [one.build([1], SamplingParams(), request_id="x")[0].seed for _ in range(4)]

    assert draw(7) == draw(7) and len(set(draw(7))) == 4
    assert draw(7) != draw(8) and draw(None) != draw(None)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "is empty"),
        ([], "is empty"),
        (np.array([], np.int32), "is empty"),
        ([1, 259], "token id 259; accepted are 0 to 258"),
        ([-1], "token id -1"),
        ([2**70], "token id"),
        (np.array([259]), "token id 259"),
        (np.array([[1]]), "shape"),
        (np.array([1.5]), "float64"),
        ([1, "a"], "'a' at place 1"),
        ([True], "True at place 0"),
        ([1.0], "1.0 at place 0"),
        (None, "NoneType"),
        (7, "int"),
        (b"abc", "bytes"),
        ({1: 2}, "dict"),
        ([1] * 100, "100 tokens and the context length is 100; accepted are at most 99"),
        ("a" * 100, "100 tokens and the context length is 100"),
        ("a" * 10_000_000, "10000000 characters"),
        ("\ud800", "surrogate"),
    ],
)
def test_prompts_that_are_refused(prompt: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        builder().build(prompt, SamplingParams(), request_id="x")
    assert caught.value.field == "prompt" and caught.value.status == 400


def test_the_longest_prompt() -> None:
    assert len(builder().prompt_ids("a" * 99)) == 99


@pytest.mark.parametrize(
    ("params", "field", "words"),
    [
        (SamplingParams(logit_bias={259: 1.0}), "logit_bias", "token id 259"),
        (SamplingParams(stop_token_ids=(300,)), "stop_token_ids", "token id 300"),
        (SamplingParams(stop=("x",) * 65), "stop", "65 strings"),
        (SamplingParams(stop=("x" * 4097,)), "stop", "4097 characters"),
    ],
)
def test_parameters_that_are_refused(params: SamplingParams, field: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        builder().build([1], params, request_id="x")
    assert caught.value.field == field


def test_without_a_tokenizer() -> None:
    ids_only = builder(with_tokenizer=False)
    with pytest.raises(RequestError, match="accepted are token ids"):
        ids_only.build("hi", SamplingParams(), request_id="x")
    with pytest.raises(RequestError, match="accepted are stop_token_ids") as caught:
        ids_only.build([1], SamplingParams(stop=("x",)), request_id="x")
    assert caught.value.field == "stop"


def test_default_params() -> None:
    info = ModelInfo("m", "p", 10, 10, frozenset(), {"temperature": 0.6, "top_k": 20})
    assert SamplingParams(**default_params(info)) == SamplingParams(temperature=0.6, top_k=20)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_new_tokens", "min_new_tokens", "top_k"])
def test_integers_that_no_message_can_carry_are_refused(name: str) -> None:
    given: dict[str, Any] = {"max_new_tokens": None}
    for value, shown in ((2**63, "9223372036854775808; "), (10**400, "0; ")):
        with pytest.raises(RequestError, match=f"{name} is 1?9?0*") as caught:
            SamplingParams(**given | {name: value})
        assert shown in str(caught.value) and len(str(caught.value)) < 250
    assert getattr(SamplingParams(**given | {name: 2**63 - 1}), name) == 2**63 - 1
