"""Llama 3.2 and 4, ToolACE: a list of Python calls, [f(a=1), g(b='x')]; arguments come one at a time."""

import re

from ..json_reader import next_char
from ..parser import Arguments, CallEnd, CallStart, Malformed, Source, Steps
from .format import NAME, ToolFormat, Tools, check_name, read_calls, to_json
from .literal import read_literal

_START, _END = "<|python_start|>", "<|python_end|>"
_WORD = re.compile(r"\w*")


def _read(source: Source, tools: Tools) -> Steps[None]:
    def calls(mark: str) -> Steps[None]:
        if mark == _START:
            yield from source.expect("[")
        while True:
            yield from source.space()
            name = check_name(tools, (yield from source.run(NAME)))
            yield from source.expect("(")
            yield from _arguments(source, name)
            if (yield from _next(source, "]")):
                break
            yield from source.expect(",")
        yield from source.space()
        yield from source.mark(_END)

    yield from read_calls(source, (_START, "["), calls)


def _arguments(source: Source, name: str) -> Steps[None]:
    """The keyword arguments, up to and with the closing bracket; the first one begins the call."""
    known: set[str] = set()
    while not (yield from _next(source, ")")):
        key = yield from source.run(_WORD)
        if not key.isidentifier() or key in known:
            raise Malformed
        yield from source.expect("=")
        value = to_json(read_literal((yield from _literal(source))))
        source.tell()
        if not known:
            yield CallStart(name)
        yield Arguments(f"{', ' if known else '{'}{to_json(key)}: {value}")
        known.add(key)
        if not (yield from _next(source, ",")) and (yield from next_char(source)) != ")":
            raise Malformed
    source.tell()
    if not known:
        yield CallStart(name)
    yield Arguments("}" if known else "{}")
    yield CallEnd()


def _next(source: Source, char: str) -> Steps[bool]:
    yield from source.space()
    return (yield from source.mark(char))


def _literal(source: Source) -> Steps[str]:
    """Read up to the comma or bracket that ends a value, neither within its brackets nor its quotes."""
    start, depth, quote = source.at, 0, ""
    while True:
        yield from source.need(1)
        char = source.text[source.at]
        if quote:
            if char == "\\":
                yield from source.need(2)
                source.at += 1
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}" and depth:
            depth -= 1
        elif char in ",)]}" and not depth:
            return source.text[start : source.at]
        source.at += 1


PYTHONIC = ToolFormat("pythonic", _read, (_START, _END), ("[func_name1(params_name1=params_value1",))
