"""Python literals as models write them: values only, nothing is ever run."""

import ast
import warnings

from ..parser import Malformed

_NAMES = {"true": True, "false": False, "null": None}  # JSON's, which models mix in


def read_literal(text: str) -> object:
    """The value of a Python literal that JSON can say too, true, false and null included.

    Raises Malformed for anything else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes, which are text like any other
            return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Malformed from None


def _value(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
    raise Malformed


def _key(node: ast.expr | None) -> str:
    match node:
        case ast.Constant(value=str() as key):
            return key
    raise Malformed
