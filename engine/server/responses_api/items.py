"""The items of a response's input, as /v1/responses/{id}/input_items lists them."""

import uuid
from collections.abc import Sequence
from typing import Any

from ...errors import RequestError
from ..protocol.base import shorten
from .protocol import ItemsQuery

Item = dict[str, Any]

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def named(given: str | Sequence[Item]) -> list[Item]:
    """An input that was read, each item with a type, a status and an id of its own."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return [_named({name: value for name, value in each.items() if value is not None}) for each in items]


def _named(item: Item) -> Item:
    kind = item.get("type", "message")
    made = {**item, "id": f"{_PREFIXES[kind]}_{uuid.uuid4().hex}", "type": kind, "status": "completed"}
    if isinstance(item.get("content"), str):
        text = {"text": item["content"]}
        is_answer = item["role"] == "assistant"
        part = {"type": "output_text", "annotations": []} if is_answer else {"type": "input_text"}
        made["content"] = [part | text]
    return made


def page_of(items: Sequence[Item], query: ItemsQuery) -> dict[str, Any]:
    """The part of `items` that a query asks for, in the form of OpenAI's lists."""
    ordered = items if query.order == "asc" else items[::-1]
    begin = 0
    if query.after is not None:
        ids = [each["id"] for each in ordered]
        if query.after not in ids:
            raise RequestError(
                f"after is {shorten(query.after)}; accepted is the id of an item of this response's input",
                "after",
            )
        begin = ids.index(query.after) + 1
    data = ordered[begin : begin + query.limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": begin + len(data) < len(items),
    }
