"""What all request bodies share: how they are checked, and what is said when they are wrong.

A field of a request is one of three: honoured (a field of the model), without effect here
(`without_effect`), or known but not supported, accepted only at values that ask for nothing
(`only_at`). Anything else is refused by name, for ignoring it could change the output unseen.
`null` always means "not given".
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ...errors import RequestError

# What fits a signed 64-bit integer, and so every message between processes.
Int = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Priority = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Float = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]

_SHOWN = 80  # characters of a wrong value that an error repeats


class Body(BaseModel):
    """Base of all request bodies. Strict: a number in quotes is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    without_effect: ClassVar[frozenset[str]] = frozenset()
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {}


M = TypeVar("M", bound=Body)


def parse(model: type[M], data: object, where: str = "") -> M:
    """Check decoded JSON against `model`; `where` is its JSON path, if it is part of a larger body.

    Raises RequestError with one sentence that names the first field at fault.
    """
    if not isinstance(data, dict):
        name = where or "the request body"
        raise RequestError(f"{name} is {shorten(data)}; accepted is a JSON object", where or None)
    prefix = where and where + "."
    fields = {}
    for name, value in data.items():
        if name in model.only_at:
            _check_only_at(prefix + name, value, model.only_at[name])
        elif name in model.model_fields:
            if value is not None:
                fields[name] = value
        elif name not in model.without_effect:
            raise _unknown_field(name, model, prefix)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _explain(error.errors(include_url=False)[0], prefix) from None


def _check_only_at(name: str, value: object, allowed: Collection[object]) -> None:
    if value is None:
        return
    # By type too, for 1 == True == 1.0 in Python.
    if not any(value == each and type(value) is type(each) for each in allowed):
        shown = " or ".join([*(shorten(each) for each in allowed), "null"])
        raise RequestError(f"{name} is {shorten(value)}; it is not supported, accepted is {shown}", name)


def _unknown_field(name: str, model: type[Body], prefix: str) -> RequestError:
    known = list(model.model_fields)
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"near are {', '.join(near)}" if near else f"accepted are {', '.join(known)}"
    path = prefix + _key(name)
    return RequestError(f"{path} is not a field of this request; {hint}", path)


def _explain(error: ErrorDetails, prefix: str) -> RequestError:
    """One pydantic error as a RequestError: JSON path, value, and what is accepted."""
    path = prefix + _path(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return RequestError(f"{path} is missing", path)
    accepted = _ACCEPTED.get(kind)
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = context["ge"] if kind == "greater_than_equal" else context["le"]
        accepted = f"a number of at {'least' if kind == 'greater_than_equal' else 'most'} {bound:g}"
    elif kind == "literal_error":
        accepted = context["expected"].replace("'", '"')
    elif kind == "value_error":  # from our own validators, which say what is accepted
        accepted = str(context["error"])
    return RequestError(f"{path} is {shorten(error['input'])}; accepted is {accepted or error['msg']}", path)


_ACCEPTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "too_long": "a shorter list",
    "too_short": "a list that is not empty",
}


def _path(loc: tuple[int | str, ...]) -> str:
    """A JSON path such as `messages[0].content`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{_key(part)}"
    return text.lstrip(".")


def _key(name: str) -> str:
    return shorten(name)[1:-1]


def shorten(value: object) -> str:
    """A JSON value as an error shows it: whole when short, else its beginning."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict) and (len(value) > 8 or _is_deep(value.values())):
        return f"an object of {len(value)} fields"
    if isinstance(value, list) and (len(value) > 16 or _is_deep(value)):
        return f"a list of {len(value)} items"
    if isinstance(value, str):
        short = value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
        return '"' + short.replace("\n", "\\n") + '"'
    text = _plain(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _is_deep(items: Iterable[object]) -> bool:
    """Whether lists or objects lie in `items`: who nests them deep enough would end our recursion."""
    return any(isinstance(each, (list, dict)) for each in items)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(shorten(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}": {shorten(each)}' for name, each in value.items()) + "}"
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print huge ones
    return str(value)
