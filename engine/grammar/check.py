"""What is checked of a specification before any library sees it."""

import json
from typing import Any

from ..errors import GrammarError
from .grammar import GrammarSpec
from .recursion import check_recursion

MAX_CHOICES = 10_000


def check_size(spec: GrammarSpec, max_bytes: int) -> None:
    """Raise GrammarError for a text that is too long; quick, whatever the text is."""
    size = len(spec.text.encode(errors="replace"))
    if size > max_bytes:
        raise GrammarError(f"{size} bytes; accepted are at most {max_bytes}, by max_grammar_bytes")


def check_text(spec: GrammarSpec, max_depth: int) -> None:
    """Raise GrammarError for a text that is not what its kind says, or is nested too deep."""
    depth = _nesting(spec.text)
    if depth > max_depth:
        raise GrammarError(
            f"brackets are nested {depth} deep; accepted are at most {max_depth}, by max_grammar_depth"
        )
    match spec.kind:
        case "json_schema":
            schema = _read_json(spec.text)
            _check_kind(schema, (dict, bool), "a JSON schema, which is an object")
            check_recursion(schema)
        case "structural_tag":
            _check_kind(_read_json(spec.text), (dict,), "an object")
        case "choices":
            choices = _read_json(spec.text)
            good = isinstance(choices, list) and all(isinstance(each, str) and each for each in choices)
            if not good or not 0 < len(choices) <= MAX_CHOICES:
                raise GrammarError(f"accepted is a list of 1 to {MAX_CHOICES} strings that are not empty")
        case "regex" | "ebnf":
            if not spec.text.strip():
                raise GrammarError("it is empty")


def _nesting(text: str) -> int:
    """How deep brackets lie in each other. Those in strings and classes count too: it is an upper bound."""
    depth = deepest = 0
    escaped = False
    for char in text:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}" and depth:
            depth -= 1
    return deepest


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"not JSON: {error}") from None


def _check_kind(value: object, kinds: tuple[type, ...], accepted: str) -> None:
    if not isinstance(value, kinds):
        raise GrammarError(f"a JSON {type(value).__name__}; accepted is {accepted}")
