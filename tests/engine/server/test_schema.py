"""The sampling fields of every route arrive in the engine's parameters, each alone and unchanged.

That no field is ignored unseen, test_fields.py shows.
"""

from typing import Any

import pytest

from radixmesh.engine.errors import RequestError
from radixmesh.engine.request import SamplingParams
from radixmesh.engine.server.protocol import native, openai, sampling
from radixmesh.engine.server.protocol.base import parse
from radixmesh.engine.server.protocol.sampling import sampling_params

# field of the request, its value -> field of SamplingParams, its value
EFFECTS: list[tuple[str, Any, str, Any]] = [
    ("n", 3, "n", 3),
    ("temperature", 0.25, "temperature", 0.25),
    ("temperature", 1, "temperature", 1.0),
    ("top_p", 0.5, "top_p", 0.5),
    ("top_k", 7, "top_k", 7),
    ("min_p", 0.1, "min_p", 0.1),
    ("frequency_penalty", -1.5, "frequency_penalty", -1.5),
    ("presence_penalty", 1.5, "presence_penalty", 1.5),
    ("repetition_penalty", 1.2, "repetition_penalty", 1.2),
    ("logit_bias", {"5": -100}, "logit_bias", {5: -100.0}),
    ("stop", "x", "stop", ("x",)),
    ("stop", ["x", "y"], "stop", ("x", "y")),
    ("stop_token_ids", [4, 5], "stop_token_ids", (4, 5)),
    ("seed", -3, "sampling_seed", -3),
    ("min_tokens", 2, "min_new_tokens", 2),
    ("ignore_eos", True, "ignore_eos", True),
    ("skip_special_tokens", False, "skip_special_tokens", False),
    ("no_stop_trim", True, "no_stop_trim", True),
]


@pytest.mark.parametrize("route", ["completions", "chat", "generate"])
@pytest.mark.parametrize(("field", "value", "name", "expected"), EFFECTS)
def test_sampling_fields_arrive(route: str, field: str, value: Any, name: str, expected: Any) -> None:
    params = params_of(route, {field: value})
    assert getattr(params, name) == expected
    assert getattr(params_of(route, {}), name) != expected or expected == 1.0
    untouched = [each for each in SamplingParams.__dataclass_fields__ if each != name]
    plain = params_of(route, {})
    assert all(getattr(params, each) == getattr(plain, each) for each in untouched)


def params_of(route: str, fields: dict[str, Any], defaults: dict[str, float] | None = None) -> SamplingParams:
    if route == "generate":
        names = {"seed": "sampling_seed", "min_tokens": "min_new_tokens"}
        data = {names.get(name, name): value for name, value in fields.items()}
        return native.read_sampling(data, "sampling_params", defaults or {}, native.Logprobs())
    body: sampling.SamplingBody
    if route == "completions":
        body = parse(openai.CompletionBody, {"prompt": "a", **fields})
    else:
        body = parse(openai.ChatBody, {"messages": [{}], **fields})
    return sampling_params(body, defaults or {}, 128, None)


@pytest.mark.parametrize("route", ["completions", "chat", "generate"])
def test_the_models_own_defaults_fill_what_is_open(route: str) -> None:
    defaults = {"temperature": 0.6, "top_k": 20, "do_sample": 1, "max_length": 20}
    assert params_of(route, {}, defaults).temperature == 0.6
    assert params_of(route, {}, defaults).top_k == 20
    given = params_of(route, {"temperature": 0, "top_k": -1}, defaults)
    assert given.temperature == 0 and given.top_k == -1
    openais = params_of(route, {})
    assert (openais.temperature, openais.top_p, openais.top_k) == (1.0, 1.0, -1)


def test_refusals_use_the_callers_words() -> None:
    for route, field in (("completions", "min_tokens"), ("generate", "sampling_params.min_new_tokens")):
        with pytest.raises(RequestError) as caught:
            params_of(route, {"min_tokens": -1})
        assert caught.value.field == field and str(caught.value).startswith(f"{field} is -1;")
