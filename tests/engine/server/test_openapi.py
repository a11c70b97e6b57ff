"""The OpenAPI document: valid, whole, and true of what the server takes."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from openapi_spec_validator import OpenAPIV31SpecValidator

from radixmesh.engine.server.app import create_app
from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.server.protocol import openai
from scripts.api_fields import PAGE, page
from tests.engine.server.scripted import ScriptedLLM

# Routes that change something and need no body to say what.
WITHOUT_BODY = {("/flush_cache", "post"), ("/v1/responses/{response_id}/cancel", "post")}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(ScriptedLLM("{{ messages }}", "a"), ServerOptions())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def served(app: FastAPI) -> dict[str, Any]:
    """The document, as a client gets it."""

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/openapi.json")

    return dict(asyncio.run(get()).json())


def test_it_is_valid_openapi(served: dict[str, Any]) -> None:
    assert served["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(served).validate()


def test_it_has_every_route(app: FastAPI, served: dict[str, Any]) -> None:
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    expected = {(route.path_format, method.lower()) for route in routes for method in route.methods or ()}
    assert {(path, method) for path, methods in served["paths"].items() for method in methods} == expected
    assert ("/v1/completions", "post") in expected and ("/generate", "put") in expected


def test_routes_that_take_a_body_say_which(served: dict[str, Any]) -> None:
    for path, methods in served["paths"].items():
        for method, operation in methods.items():
            takes = method in ("post", "put") and (path, method) not in WITHOUT_BODY
            assert ("requestBody" in operation) == takes, (path, method)


def test_every_treatment_is_told(served: dict[str, Any]) -> None:
    fields = served["components"]["schemas"]["CompletionBody"]["properties"]
    assert fields["user"]["x-treatment"] == "without effect"
    assert fields["use_beam_search"] == {
        "description": "Not supported: accepted only at a value that asks for nothing.",
        "enum": [False, None],
        "x-treatment": "only at",
    }
    assert fields["top_k"]["x-treatment"] == "honoured" and {"type": "null"} in fields["top_k"]["anyOf"]
    assert {"type": "null"} not in fields["prompt"]["anyOf"]
    for body in (openai.CompletionBody, openai.ChatBody):
        names = {*body.model_fields, *body.without_effect, *body.only_at}
        shown = served["components"]["schemas"][body.__name__]
        assert set(shown["properties"]) == names and shown["additionalProperties"] is False


def test_bodies_in_bodies_are_shown(served: dict[str, Any]) -> None:
    schemas = served["components"]["schemas"]
    assert schemas["ChatBody"]["properties"]["messages"]["items"] == {"$ref": "#/components/schemas/Message"}
    content = schemas["Message"]["properties"]["content"]["anyOf"]
    assert content == [
        {"type": "string"},
        {"type": "array", "items": {"$ref": "#/components/schemas/TextPart"}},
        {"type": "null"},
    ]
    choice = schemas["ChatBody"]["properties"]["tool_choice"]["anyOf"]
    assert choice == [{"type": "string"}, {"$ref": "#/components/schemas/Tool"}, {"type": "null"}]


def test_the_page_of_all_fields_is_of_today(served: dict[str, Any]) -> None:
    assert PAGE.read_text() == page(served), "python scripts/api_fields.py writes it anew"
