"""Calls that the model may make, and then with arguments of the tool's schema: `strict` tools."""

from collections.abc import Collection
from typing import Any

from .forced import arguments_schema
from .format import CallTags, Tools


def calls_text(tags: CallTags, tools: Tools, strict: Collection[str]) -> dict[str, Any]:
    """How calls of `tools` are written in a text, as grammar/calls.py has it.

    Arguments of a tool that is not strict are any JSON object.
    """
    return {
        "trigger": tags.trigger,
        "tags": [
            {
                "head": tag.head,
                "schema": arguments_schema(tools[name]) if name in strict else {"type": "object"},
                "tail": tag.tail,
            }
            for name in tools
            for tag in tags.of(name)
        ],
    }
