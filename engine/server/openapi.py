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


def errors_as(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`, for one whose errors look so."""
    return {
        "4XX": {"model": model, "description": "The request was refused; the message says why."},
        "5XX": {"model": model, "description": "The server could not answer."},
    }


ERRORS = errors_as(ErrorAnswer)


def takes(body: type[Body], stream_type: str) -> dict[str, Any]:
    """A route's `openapi_extra`: it takes `body`, and answers with a stream where that has `stream`."""
    schema = {"$ref": REF.format(model=body.__name__)}
    extra: dict[str, Any] = {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
    }
    if "stream" in body.model_fields:
        extra["responses"] = {"200": {"content": {stream_type: {"schema": {"type": "string"}}}}}
    return extra


def document(app: FastAPI, bodies: Iterable[type[Body]]) -> dict[str, Any]:
    """The document of all routes that `app` has now; `bodies` are all that they take."""
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = made["components"]["schemas"]
    for body in bodies:
        for name, schema in schemas_of(body).items():
            assert schemas.setdefault(name, schema) == schema, f"two bodies are called {name}"
    return made
