"""No field of any route is ignored unseen: shown for each that the OpenAPI document has.

A field is honoured (a value of it changes the answer, or what is asked of the engine; what its schema
forbids is refused), without effect (nothing changes, whatever it is), or accepted only at values that
ask for nothing. All that is refused gets a 400 that names the field.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from radixmesh.engine.server.app import create_app
from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.server.protocol.base import Body
from tests.engine.server import effects
from tests.engine.server.anthropic import effects as anthropic
from tests.engine.server.effects import Effect, Object, Place
from tests.engine.server.ollama import effects as ollama
from tests.engine.server.scripted import ScriptedLLM

TEMPLATE = """
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}{{ message | tojson }}{{ message.content }}{% endfor %}
{%- if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}
{%- if enable_thinking is defined %}think {{ enable_thinking }} {{ thinking_budget }}{% endif %}
{%- if instruct is defined %}Is it "yes" or "no"? {{ instruct }}{% endif %}
{%- for call in messages[0].tool_calls or [] %}{{ call | tojson }}{% endfor %}
{%- if add_generation_prompt %}assistant: {{ opening or '' }}{% endif %}"""
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
SCRIPT = f"<think>hm</think>a b{CALL}{CALL}"
# Of every JSON type; none is a word that means something.
VALUES: list[Any] = ["frobnicate", 17, 1.5, True, ["frobnicate"], [[]], {"frobnicate": 1}, {"type": "x"}]


class Observed:
    """A server in this process, and all that one request makes it do."""

    def __init__(self) -> None:
        self.llm = ScriptedLLM(TEMPLATE, SCRIPT, words=("yes", "no"))
        options = ServerOptions(tool_call_parser="hermes", reasoning_parser="qwen3")
        self.app: FastAPI = create_app(self.llm, options)  # type: ignore[arg-type]
        self.document: dict[str, Any] = self.app.openapi()
        self.loop = asyncio.new_event_loop()
        transport = httpx.ASGITransport(app=self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def send(self, route: str, body: Object) -> tuple[int, str, str]:
        """Status, answer, and what was asked of the engine; without ids and times, which always differ."""
        self.llm.calls.clear()
        answer = self.loop.run_until_complete(self._post(route, body))
        return answer.status_code, _plain(answer.text), _plain(repr(self.llm.calls))

    async def _post(self, route: str, body: Object) -> httpx.Response:
        """The answer, once what it left to be done in the background is done too."""
        answer = await self.client.post(route, json=body)
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(left)
        return answer

    def close(self) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()


def _plain(text: str) -> str:
    text = re.sub(
        r'"(created|created_at|completed_at|e2e_latency|\w+_duration)":("[^"]*"|[\d.e-]+)', "", text
    )
    return re.sub(r"call_\w{12,}|[0-9a-f]{24,}", "ID", text)


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    made = Observed()
    yield made
    made.close()


def refusal(observed: Observed, place: Place, body: Object, name: str) -> str | None:
    """What is wrong with how a value of the field `name` is refused; None when nothing is."""
    status, text, calls = observed.send(place.route, place.put(body))
    path = f"{place.path}.{name}" if place.path else name
    if status != 400 or calls != "[]":
        return f"{path}={json.dumps(body[name])}: status {status}: {text[:300]}"
    error = json.loads(text)["error"]
    told = {"message": error} if isinstance(error, str) else error
    if path not in told["message"] or not str(told.get("param", path)).startswith(path):
        return f"{path}={json.dumps(body[name])} is refused, but not by name: {error}"
    return None


def fields(observed: Observed, body: str, treatment: str) -> dict[str, Any]:
    shown = observed.document["components"]["schemas"][body]["properties"]
    return {name: field for name, field in shown.items() if field["x-treatment"] == treatment}


PLACES: dict[str, Place] = effects.PLACES | anthropic.PLACES | ollama.PLACES
BODIES = sorted(PLACES)
UNSEEN = {  # bases; choices that are refused by their value
    "SamplingBody", "GrammarBody", "OpenAIGrammarBody", "OllamaBody", "NamedFunction", "FunctionChoice",
    "Query", "ResponseQuery", "ItemsQuery",  # queries: test_responses.py
}  # fmt: skip


def subclasses(kind: type[Body]) -> set[type[Body]]:
    return {kind} | {each for child in kind.__subclasses__() for each in subclasses(child)}


def test_every_body_of_every_route_has_a_place(observed: Observed) -> None:
    schemas = observed.document["components"]["schemas"]
    answers = {"ErrorAnswer", "ErrorObject", "AnthropicError", "AnthropicErrorObject", "OllamaError"}
    assert set(schemas) - answers == set(PLACES)
    assert {each.__name__ for each in subclasses(Body) - {Body}} == {*PLACES, *UNSEEN}
    for body in PLACES:
        assert set(fields(observed, body, "honoured")) == set(PLACES[body].effects), body


@pytest.mark.parametrize("body", BODIES)
def test_what_is_honoured_has_an_effect(observed: Observed, body: str) -> None:
    place, bad = PLACES[body], []
    for name, given in place.effects.items():
        effect = given if isinstance(given, Effect) else Effect(given)
        base = (place.smallest if effect.base is None else effect.base) | effect.beside
        without = observed.send(place.route, place.put(base))
        got = observed.send(place.route, place.put(base | {name: effect.value}))
        if got[0] != effect.status or got == without:
            bad.append(f"{name}: {got}")
    assert not bad


@pytest.mark.parametrize("body", BODIES)
def test_what_the_schema_forbids_is_refused_by_name(observed: Observed, body: str) -> None:
    place, bad = PLACES[body], []
    for name in fields(observed, body, "honoured"):
        schema = {"$ref": f"#/components/schemas/{body}/properties/{name}"}
        validator = Draft202012Validator({**schema, "components": observed.document["components"]})
        wrong = [value for value in VALUES if not validator.is_valid(value)]
        assert wrong, f"{name} takes everything"
        effect = place.effects[name]
        base = effect.base if isinstance(effect, Effect) and effect.base is not None else place.smallest
        bad += [refusal(observed, place, {**base, name: value}, name) for value in wrong]
    assert not [each for each in bad if each]


@pytest.mark.parametrize("body", BODIES)
def test_what_has_no_effect_says_so(observed: Observed, body: str) -> None:
    place = PLACES[body]
    without = observed.send(place.route, place.put(place.smallest))
    for name in fields(observed, body, "without effect"):
        for value in VALUES:
            assert observed.send(place.route, place.put({**place.smallest, name: value})) == without, name


@pytest.mark.parametrize("body", BODIES)
def test_what_is_not_supported_is_refused_by_name(observed: Observed, body: str) -> None:
    place, bad = PLACES[body], []
    without = observed.send(place.route, place.put(place.smallest))
    for name, field in fields(observed, body, "only at").items():
        for value in field["enum"]:
            assert observed.send(place.route, place.put({**place.smallest, name: value})) == without, name
        opposite = [not value for value in field["enum"] if isinstance(value, bool)]
        for value in [*VALUES, *opposite]:
            if not any(value == each and type(value) is type(each) for each in field["enum"]):
                bad.append(refusal(observed, place, {**place.smallest, name: value}, name))
    assert not [each for each in bad if each]


@pytest.mark.parametrize("body", BODIES)
def test_unknown_fields_are_refused_by_name(observed: Observed, body: str) -> None:
    place = PLACES[body]
    for value in (*VALUES, None, {}, []):
        assert refusal(observed, place, {**place.smallest, "frobnicate": value}, "frobnicate") is None


@pytest.mark.parametrize("body", BODIES)
def test_null_is_not_given(observed: Observed, body: str) -> None:
    place = PLACES[body]
    required = observed.document["components"]["schemas"][body].get("required", ())
    nulls = {name: None for name in fields(observed, body, "honoured") if name not in place.smallest}
    given = observed.send(place.route, place.put({**place.smallest, **nulls}))
    assert given == observed.send(place.route, place.put(place.smallest))
    for name in required:
        assert refusal(observed, place, {**place.smallest, name: None}, name) is None
