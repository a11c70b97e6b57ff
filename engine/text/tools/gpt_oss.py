"""gpt-oss: a message of the harmony format to functions.name, whose body is the JSON of the arguments."""

import re

from ..harmony import BEGINS, MARKS, read_header
from ..parser import Malformed, Source, Steps
from .format import ToolFormat, Tools, check_name, read_arguments, read_calls

_RECIPIENT = re.compile(r"\bto=functions\.([A-Za-z0-9_.-]+)")


def _read(source: Source, tools: Tools) -> Steps[None]:
    def call(mark: str) -> Steps[None]:
        recipient = _RECIPIENT.search((yield from read_header(source)))
        if recipient is None:
            raise Malformed
        yield from read_arguments(source, check_name(tools, recipient[1]))
        yield from source.space()
        yield from source.mark("<|call|>")

    yield from read_calls(source, BEGINS, call)


GPT_OSS = ToolFormat("gpt-oss", _read, MARKS, ("<|channel|>", "functions."))
