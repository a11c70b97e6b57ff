"""Every field of every request is honoured, without effect, or refused: nothing is dropped unseen."""

from typing import Any

import pytest

from radixmesh.engine.errors import RequestError
from radixmesh.engine.request import SamplingParams
from radixmesh.engine.server.protocol import native, openai, sampling, tools
from radixmesh.engine.server.protocol.base import Body, parse
from radixmesh.engine.server.protocol.sampling import sampling_params

SAMPLING = set(
    "model stream stream_options n temperature top_p frequency_penalty presence_penalty logit_bias stop seed"
    " top_k min_p repetition_penalty min_tokens stop_token_ids ignore_eos skip_special_tokens no_stop_trim"
    " priority cache_salt extra_key rid".split()
)
# What each body honours. A field that is new here needs a test that shows its effect.
HONOURED: dict[type[Body], set[str]] = {
    openai.CompletionBody: SAMPLING | {"prompt", "max_tokens", "logprobs", "best_of"},
    openai.ChatBody: SAMPLING
    | set(
        "messages max_tokens max_completion_tokens logprobs top_logprobs chat_template_kwargs tools"
        " tool_choice parallel_tool_calls reasoning_effort separate_reasoning stream_reasoning".split()
    ),
    openai.Message: {"role", "content", "name", "tool_call_id", "tool_calls", "reasoning_content"},
    openai.TextPart: {"type", "text"},
    tools.Tool: {"type", "function"},
    tools.Function: {"name", "description", "parameters"},
    tools.NamedFunction: {"name"},
    tools.ToolCall: {"id", "type", "function"},
    tools.FunctionCall: {"name", "arguments"},
    sampling.StreamOptions: {"include_usage"},
    native.GenerateBody: set(
        "text input_ids sampling_params stream return_logprob top_logprobs_num return_text_in_logprobs rid"
        " priority extra_key".split()
    ),
    native.GenerateSampling: set(
        "max_new_tokens min_new_tokens temperature top_k top_p min_p frequency_penalty presence_penalty"
        " repetition_penalty logit_bias sampling_seed stop stop_token_ids ignore_eos skip_special_tokens"
        " no_stop_trim n".split()
    ),
    native.TokenizeBody: set(
        "prompt messages model add_special_tokens add_generation_prompt chat_template_kwargs".split()
    ),
    native.DetokenizeBody: {"tokens", "model", "skip_special_tokens"},
    native.AbortBody: {"rid", "abort_all"},
}
BODIES = list(HONOURED)


def smallest(model: type[Body]) -> dict[str, Any]:
    """The least that `model` accepts."""
    values: dict[str, Any] = {
        "prompt": "a", "messages": [{}], "role": "user", "type": "text", "text": "a", "tokens": [1],
        "name": "f", "function": {},
    }  # fmt: skip
    if model is tools.Tool:
        values["type"] = "function"
    return {name: values[name] for name, field in model.model_fields.items() if field.is_required()}


def subclasses(kind: type[Body]) -> set[type[Body]]:
    return {kind} | {each for child in kind.__subclasses__() for each in subclasses(child)}


def test_the_list_is_whole() -> None:
    assert subclasses(Body) == {Body, sampling.SamplingBody, *BODIES}
    for model, names in HONOURED.items():
        assert set(model.model_fields) == names, model.__name__


@pytest.mark.parametrize("model", BODIES)
def test_a_field_has_one_treatment(model: type[Body]) -> None:
    fields, free, bound = set(model.model_fields), set(model.without_effect), set(model.only_at)
    assert not fields & free and not fields & bound and not free & bound


@pytest.mark.parametrize("model", BODIES)
def test_unknown_fields_are_refused_whatever_their_value(model: type[Body]) -> None:
    parse(model, smallest(model))
    values: list[Any] = [1, None, "", [], {}]
    for value in values:
        with pytest.raises(RequestError, match="frobnicate is not a field") as caught:
            parse(model, {**smallest(model), "frobnicate": value})
        assert caught.value.field == "frobnicate" and caught.value.status == 400


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model in BODIES for name in model.only_at], ids=str
)
def test_unsupported_fields_pass_only_where_they_ask_for_nothing(model: type[Body], name: str) -> None:
    for value in (None, *model.only_at[name]):
        parse(model, {**smallest(model), name: value})
    for value in (
        "frobnicate",
        17,
        ["x"],
        {"x": 1},
        *(not v for v in model.only_at[name] if v in (True, False)),
    ):
        with pytest.raises(RequestError) as caught:
            parse(model, {**smallest(model), name: value})
        assert caught.value.field == name and str(caught.value).startswith(name)


@pytest.mark.parametrize("model", BODIES)
def test_null_is_not_given(model: type[Body]) -> None:
    nulls = {name: None for name in model.model_fields if name not in smallest(model)}
    assert parse(model, {**smallest(model), **nulls}) == parse(model, smallest(model))


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
        return native.read_sampling(data, "sampling_params", defaults or {}, None)
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
