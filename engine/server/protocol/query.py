"""Queries of routes that take no body: checked, refused and shown as bodies are."""

from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict

from ...errors import RequestError
from .base import Body, parse
from .schema import schemas_of


class Query(Body):
    """Base of all queries. Not strict: a query has only texts."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=False)


Q = TypeVar("Q", bound=Query)


def read_query(model: type[Q], given: Iterable[tuple[str, str]]) -> Q:
    """The names and values of a query as a checked `model`. Raises RequestError naming the first at fault."""
    fields: dict[str, str] = {}
    for name, value in given:
        if name in fields:
            raise RequestError(f"{name} is given more than once; accepted is one value", name)
        fields[name] = value
    return parse(model, fields)


def takes_query(model: type[Query]) -> dict[str, Any]:
    """A route's `openapi_extra`: it takes a query of this model."""
    properties = schemas_of(model)[model.__name__]["properties"]
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in properties.items()
        ]
    }
