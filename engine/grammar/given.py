"""From what users write to a `GrammarSpec`, the same for HTTP, command line and files."""

import json
from collections.abc import Mapping
from typing import Any

from ..errors import GrammarError
from .grammar import GrammarKind, GrammarSpec

FIELDS: tuple[GrammarKind, ...] = ("json_schema", "regex", "ebnf", "choices", "structural_tag")
KINDS: tuple[GrammarKind, ...] = ("json_object", *FIELDS)


def spec_of(kind: GrammarKind, value: object) -> GrammarSpec:
    """The specification of a text, or of decoded JSON. Order of keys counts: it is the order of output."""
    if isinstance(value, str) and kind != "choices":
        return GrammarSpec(kind, value)
    try:
        return GrammarSpec(kind, json.dumps(value, ensure_ascii=False))
    except RecursionError:
        raise GrammarError(f"{kind} is nested too deep", kind) from None


def only_one(given: Mapping[Any, GrammarSpec | None]) -> GrammarSpec | None:
    """The one that is given, by the name of its field. Raises GrammarError if there are several."""
    names = [name for name, spec in given.items() if spec is not None]
    if len(names) > 1:
        raise GrammarError(f"{' and '.join(names)} are given; accepted is one of them", names[1])
    return given[names[0]] if names else None
