"""gpt-oss: a message of the harmony format to functions.name, whose body is the JSON of the arguments."""

import re

from ..parser import Malformed, Source, Steps
from .format import ToolFormat, Tools, check_name, read_arguments, read_calls

MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>")
_HEADER = re.compile(r"[^<\n{]*")
_RECIPIENT = re.compile(r"to=functions\.([A-Za-z0-9_.-]+)")


def _read(source: Source, tools: Tools) -> Steps[None]:
    def call(mark: str) -> Steps[None]:
        header = yield from source.run(_HEADER)
        while not (yield from source.mark("<|message|>")):
            if not ((yield from source.mark("<|channel|>")) or (yield from source.mark("<|constrain|>"))):
                raise Malformed
            header += " " + (yield from source.run(_HEADER))
        recipient = _RECIPIENT.search(header)
        if recipient is None:
            raise Malformed
        yield from read_arguments(source, check_name(tools, recipient[1]))
        yield from source.space()
        yield from source.mark("<|call|>")

    yield from read_calls(source, ("<|start|>", "<|channel|>"), call)


GPT_OSS = ToolFormat("gpt-oss", _read, MARKS, ("<|channel|>",))
