"""Mistral: [TOOL_CALLS] and a JSON list; since tokenizer v11 [TOOL_CALLS]name[ARGS]{...} for each call."""

import re
import secrets
import string

from ..json_reader import next_char
from ..parser import Source, Steps
from .format import (
    NAME,
    CallTag,
    CallTags,
    ToolFormat,
    Tools,
    check_name,
    read_arguments,
    read_calls,
    read_json_calls,
)

_CALLS, _ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_ID_CHARS = re.compile(r"[A-Za-z0-9]*")


def _read(source: Source, tools: Tools) -> Steps[None]:
    def call(mark: str) -> Steps[None]:
        if (yield from next_char(source)) == "[":
            source.at += 1
            yield from read_json_calls(source, tools)
            return
        name = check_name(tools, (yield from source.run(NAME)))
        if (yield from source.mark(_ID)):
            yield from source.run(_ID_CHARS)
        yield from source.mark(_ARGS)
        yield from read_arguments(source, name)

    yield from read_calls(source, (_CALLS,), call)


def _new_id() -> str:
    """Mistral's templates take ids of nine letters and digits only."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def _tags(name: str) -> tuple[CallTag, ...]:
    """A list of one call, with or without a space before it, or a call since v11."""
    listed = f'[{{"name": "{name}", "arguments": '
    return CallTag(listed, "}]"), CallTag(" " + listed, "}]"), CallTag(name + _ARGS, "")


MISTRAL = ToolFormat("mistral", _read, (_CALLS, _ID, _ARGS), (_CALLS,), _new_id, tags=CallTags(_CALLS, _tags))
