"""Llama 3.1 to 3.3: JSON with "name" and "parameters", bare or after <|python_tag|>, joined by semicolons."""

from ..parser import Source, Steps
from .format import ToolFormat, Tools, read_calls, read_json_call

_TAG = "<|python_tag|>"


def _read(source: Source, tools: Tools) -> Steps[None]:
    def call(mark: str) -> Steps[None]:
        if mark == "{":
            source.at -= 1
        yield from read_json_call(source, tools)
        yield from source.space()
        yield from source.mark(";")

    yield from read_calls(source, (_TAG, "{"), call)


LLAMA3 = ToolFormat("llama3", _read, (_TAG,), ("dictionary of argument name",))
