"""What the tool formats share: when text becomes a call, and how a call's arguments come out.

A call must name a tool of the request and begin its arguments; until then it can still turn out to be
text. From then on its arguments are told as they come. Where they break off, what was told stands and
the rest is text.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..json_reader import next_char, read_string, read_value
from ..parser import (
    Arguments,
    CallEnd,
    CallStart,
    Event,
    Malformed,
    Source,
    Steps,
    Text,
    Truncated,
    tell_until,
)

Tools = Mapping[str, Mapping[str, Any]]  # name -> JSON schema of the parameters

NAME = re.compile(r"[A-Za-z0-9_.-]*")
_OPTIONAL = ("id", "type")  # what models write beside name and arguments


def _openai_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass(frozen=True, slots=True)
class CallTag:
    """A call of a tool: `head`, the JSON of its arguments, `tail`."""

    head: str
    tail: str


@dataclass(frozen=True, slots=True)
class CallTags:
    """All ways to write calls: `trigger`, which is in no other text, and then one of a tool's tags."""

    trigger: str
    of: Callable[[str], tuple[CallTag, ...]]  # the tool's name


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model family writes calls.

    `read` may be given any text of the model. `marks` are tokens of the format; where a tokenizer has
    them as special ones they must be shown. A template with all of `signs` is taken to teach this format.
    With `tags`, calls can be held to their tools' schemas.
    """

    name: str
    read: Callable[[Source, Tools], Steps[None]]
    marks: tuple[str, ...]
    signs: tuple[str, ...]
    new_id: Callable[[], str] = _openai_id
    tags: CallTags | None = None


def read_calls(source: Source, marks: Sequence[str], call: Callable[[str], Steps[None]]) -> Steps[None]:
    """Text with calls in it, each begun by one of `marks`, which `call` is given.

    Whitespace around calls is no part of the text.
    """
    while True:
        mark = yield from tell_until(source, marks)
        if mark is None:
            return
        opening, told = source.at, source.told
        try:
            yield from call(mark)
            yield from source.space()
            source.tell()
        except Malformed:
            # Only the mark is certainly text: a call may follow it.
            source.at = opening if source.told == told else 0
            if source.at:
                yield Text(source.tell())


def check_name(tools: Tools, name: str) -> str:
    """`name`, if a tool has it; raises Malformed if none has."""
    if name not in tools:
        raise Malformed
    return name


def read_arguments(source: Source, name: str) -> Steps[None]:
    """A whole call of `name` whose arguments are the JSON object that comes next; what led here goes."""
    if (yield from next_char(source)) != "{":
        raise Malformed
    source.tell()
    yield CallStart(name)
    yield from _tell(source, read_value(source))
    yield CallEnd()


def _tell(source: Source, reading: Steps[None]) -> Steps[None]:
    """Tell as arguments what `reading` reads, each time it waits; of truncated ones every character."""
    while True:
        try:
            step: Event | None = next(reading)
        except StopIteration:
            break
        except Malformed as error:
            if isinstance(error, Truncated):
                source.at = len(source.text)
            if source.at:
                yield Arguments(source.tell())
            raise
        if source.at:
            yield Arguments(source.tell())
        yield step
    yield Arguments(source.tell())


def read_json_call(source: Source, tools: Tools) -> Steps[None]:
    """A call that is a JSON object with "name" and "arguments" (or "parameters"), in any order."""
    yield from source.expect("{")
    name = arguments = None
    while True:
        key = yield from read_string(source)
        yield from source.expect(":")
        if key == "name" and name is None:
            name = check_name(tools, (yield from read_string(source)))
        elif key in ("arguments", "parameters") and arguments is None:
            if name is not None:
                yield from read_arguments(source, name)
                break
            arguments = yield from _object(source)
        elif key in _OPTIONAL:
            yield from read_value(source)
        else:
            raise Malformed
        char = yield from next_char(source)
        if name is not None and (char == "}" or arguments is not None):
            yield from whole_call(source, name, arguments or "{}")
            break
        yield from source.expect(",")
    yield from _rest_of_object(source)


def read_json_calls(source: Source, tools: Tools) -> Steps[None]:
    """The calls of a JSON list, whose bracket is read, up to and with its end."""
    while True:
        yield from read_json_call(source, tools)
        char = yield from next_char(source)
        if char not in ",]":
            raise Malformed
        source.at += 1
        if char == "]":
            return


def whole_call(source: Source, name: str, arguments: str) -> Steps[None]:
    """The three events of a call that was read as a whole."""
    source.tell()
    yield CallStart(name)
    yield Arguments(arguments)
    yield CallEnd()


def _object(source: Source) -> Steps[str]:
    if (yield from next_char(source)) != "{":
        raise Malformed
    start = source.at
    yield from read_value(source)
    return source.text[start : source.at]


def _rest_of_object(source: Source) -> Steps[None]:
    """Read what may follow the arguments. The call is good even if this is amiss; then nothing is read."""
    try:
        while (yield from next_char(source)) == ",":
            source.at += 1
            yield from read_string(source)
            yield from source.expect(":")
            yield from read_value(source)
        yield from source.expect("}")
        source.tell()
    except Malformed:
        source.at = 0


def to_json(value: object) -> str:
    """JSON for a value of a call. Raises Malformed for what JSON cannot say."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError):
        raise Malformed from None
    return text
