"""The OpenAPI document: every route, what its body may hold, and what errors look like."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from .protocol.base import Body
from .protocol.schema import REF, schemas_of


class ErrorObject(BaseModel):
    """What went wrong: one sentence, the field's JSON path if it is one field's fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The answer of every status from 400 on."""

    error: ErrorObject


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request was refused; the message says why."},
    "5XX": {"model": ErrorAnswer, "description": "The server could not answer."},
}


def takes(body: type[Body]) -> dict[str, Any]:
    """A route's `openapi_extra`: it takes `body`, and answers with events where that has `stream`."""
    schema = {"$ref": REF.format(model=body.__name__)}
    extra: dict[str, Any] = {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
    }
    if "stream" in body.model_fields:
        extra["responses"] = {"200": {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
    return extra


def document(app: FastAPI, bodies: Iterable[type[Body]]) -> dict[str, Any]:
    """The document of all routes that `app` has now; `bodies` are all that they take."""
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = made["components"]["schemas"]
    for body in bodies:
        for name, schema in schemas_of(body).items():
            assert schemas.setdefault(name, schema) == schema, f"two bodies are called {name}"
    return made
