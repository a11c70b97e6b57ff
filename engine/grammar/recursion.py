"""Whether a JSON schema has any finite value: one that must contain itself has none."""

from collections.abc import Callable
from typing import Any

from ..errors import GrammarError

MAX_REFS = 200  # different ones; of schemas with more it is not asked


def check_recursion(root: Any) -> None:
    """Raise GrammarError if every value of the schema would be infinite."""
    refs: set[str] = set()
    _collect(root, refs)
    if len(refs) > MAX_REFS:
        return
    ending: set[str] = set()
    known = -1
    while len(ending) > known:
        known = len(ending)
        ending |= {ref for ref in refs - ending if _ends(_resolve(root, ref), ending.__contains__)}
    if not _ends(root, ending.__contains__):
        raise GrammarError("recursion without end: each value has to contain another of its kind")


def _ends(schema: Any, ref_ends: Callable[[str], bool]) -> bool:
    """Whether there is a finite value, if those of the refs that `ref_ends` names have one."""
    if not isinstance(schema, dict):
        return True
    needed: list[Any] = list(_list(schema, "allOf"))
    if schema.get("type") == "object":
        properties = schema.get("properties")
        if isinstance(properties, dict):
            needed += [properties.get(name) for name in _list(schema, "required") if isinstance(name, str)]
    if schema.get("type") == "array" and isinstance(schema.get("minItems"), int):
        first = _list(schema, "prefixItems")[: schema["minItems"]]
        needed += first
        needed += [schema.get("items")] if schema["minItems"] > len(first) else []
    ref = schema.get("$ref")
    if isinstance(ref, str) and not ref_ends(ref):
        return False
    choices = [_list(schema, name) for name in ("anyOf", "oneOf")]
    return all(_ends(each, ref_ends) for each in needed) and all(
        any(_ends(each, ref_ends) for each in several) for several in choices if several
    )


def _collect(value: Any, refs: set[str]) -> None:
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _collect(each, refs)
    if isinstance(value, dict) and isinstance(value.get("$ref"), str):
        refs.add(value["$ref"])


def _resolve(root: Any, ref: str) -> Any:
    """What a reference into the same schema leads to; None, which ends, for any other."""
    if not ref.startswith("#"):
        return None
    found = root
    for part in ref[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _list(schema: dict[str, Any], name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []
