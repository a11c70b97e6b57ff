"""Structural tags in SGLang's first form: free text, in which a trigger begins a tag with a JSON schema."""

import json
from dataclasses import dataclass
from typing import Any

from ..errors import GrammarError


@dataclass(frozen=True, slots=True)
class Tag:
    """Where text comes to `trigger`, it goes on as `begin`, a JSON value of `schema`, and `end`."""

    trigger: str
    begin: str
    schema: dict[str, Any]
    end: str


def read_structural_tag(text: str) -> list[Tag]:
    """The tags of {"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}.

    Raises GrammarError, naming what is wrong.
    """
    value = json.loads(text)
    structures, triggers = value.get("structures"), value.get("triggers")
    if not _is_list_of(structures, dict) or not _is_list_of(triggers, str) or not all(triggers):
        raise GrammarError(
            'accepted is {"type": "structural_tag", "structures": [{"begin", "schema", "end"}, ...],'
            ' "triggers": [...]}, with at least one structure and trigger'
        )
    return [_read_structure(each, index, triggers) for index, each in enumerate(structures)]


def _read_structure(structure: dict[str, Any], index: int, triggers: list[str]) -> Tag:
    begin, schema, end = (structure.get(name) for name in ("begin", "schema", "end"))
    if not isinstance(begin, str) or not isinstance(schema, dict) or not isinstance(end, str):
        raise GrammarError(
            f"structures[{index}] is wrong; accepted is an object with begin and end, which are strings, and"
            " schema, which is an object"
        )
    fitting = [trigger for trigger in triggers if begin.startswith(trigger)]
    if not fitting:
        raise GrammarError(
            f"structures[{index}].begin is {begin:.80}; accepted is a text that starts with a trigger"
        )
    return Tag(max(fitting, key=len), begin, schema, end)


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, kind) for each in value)
