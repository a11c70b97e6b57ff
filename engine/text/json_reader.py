"""JSON that arrives in pieces: checked character by character (RFC 8259), never read ahead."""

import json
import re

from .parser import Malformed, Source, Steps, Truncated

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPE = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})')
_WORD = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_CLOSING = {"{": "}", "[": "]"}


def read_value(source: Source) -> Steps[None]:
    """Read one value, as far as it is JSON.

    Raises Malformed, with the source standing before the first number, word, escape or character at
    fault, or Truncated. Any depth costs no recursion. What was read may be told in between.
    """
    open_ones: list[str] = []  # what will close them
    while True:
        char = yield from next_char(source)
        if char in _CLOSING:
            source.at += 1
            open_ones.append(_CLOSING[char])
            inner = yield from next_char(source)
            if inner != open_ones[-1]:
                if char == "{":
                    yield from _key(source)
                continue
        elif char == '"':
            yield from _string(source)
        else:
            yield from _scalar(source)
        while True:  # after a value
            if not open_ones:
                return
            char = yield from next_char(source)
            if char == ",":
                break
            if char != open_ones[-1]:
                raise Malformed
            source.at += 1
            open_ones.pop()
        source.at += 1
        if open_ones[-1] == "}":
            yield from next_char(source)
            yield from _key(source)


def read_string(source: Source) -> Steps[str]:
    """Read a string; what it says. Nothing may be told in between. Raises as `read_value`."""
    yield from next_char(source)
    start = source.at
    yield from _string(source)
    text: str = json.loads(source.text[start : source.at])
    return text


def next_char(source: Source) -> Steps[str]:
    """Read whitespace; the character after it, which is not read. Raises Truncated when there is none."""
    yield from source.run(_SPACE)
    yield from source.need(1)
    return source.text[source.at]


def _key(source: Source) -> Steps[None]:
    yield from _string(source)
    if (yield from next_char(source)) != ":":
        raise Malformed
    source.at += 1


def _string(source: Source) -> Steps[None]:
    if source.text[source.at] != '"':
        raise Malformed
    source.at += 1
    while True:
        found = _PLAIN.match(source.text, source.at)
        assert found is not None
        source.at = found.end()
        yield from source.need(1)
        if source.text[source.at] == '"':
            source.at += 1
            return
        if source.text[source.at] == "\\":
            yield from source.need(2)
            yield from source.need(6 if source.text[source.at + 1] == "u" else 2)
        elif source.text[source.at] < " ":
            raise Malformed
        else:
            continue
        escape = _ESCAPE.match(source.text, source.at)
        if escape is None:
            raise Malformed
        source.at = escape.end()


def _scalar(source: Source) -> Steps[None]:
    word = yield from source.run(_WORD)
    if _SCALAR.fullmatch(word):
        return
    at_end = source.at == len(source.text)
    source.at -= len(word)
    raise Truncated if at_end else Malformed
