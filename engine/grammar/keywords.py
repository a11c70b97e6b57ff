"""Which words of JSON Schema a schema uses: what a library would ignore is refused by name."""

import re
from collections.abc import Set
from typing import Any

from ..errors import GrammarError

ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly"}
    | {"writeOnly"}
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = (
    "items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "propertyNames", "not",
    "if", "then", "else", "contains",
)  # fmt: skip

# what may be a quote or a control character, which libraries that know patterns but no JSON do not escape
_OPEN_CLASS = re.compile(r"(?<!\\)(?:\\\\)*(?:\.|\[\^|\\[SDWnrt])")


def check_keywords(schema: Any, accepted: Set[str], path: str = "#") -> None:
    """Raise GrammarError for the first keyword, however deep, that is not among `accepted`."""
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name not in accepted:
            raise GrammarError(
                f"this grammar_backend cannot do {name}, at {path}; accepted are"
                f" {', '.join(sorted(accepted))}"
            )
        if name == "pattern" and isinstance(value, str) and _OPEN_CLASS.search(value):
            raise GrammarError(
                f"this grammar_backend cannot do the pattern {value:.80}, at {path}; accepted are patterns of"
                " characters and classes that are listed, for others might need escapes"
            )
        inner: list[Any] = []
        if name in _MAPS and isinstance(value, dict):
            inner = list(value.values())
        elif name in _LISTS and isinstance(value, list):
            inner = value
        elif name in _SCHEMAS:
            inner = [value]
        for each in inner:
            check_keywords(each, accepted, f"{path}/{name}")
