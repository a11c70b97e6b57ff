"""Hermes 2 Pro, Qwen 2.5 and Qwen 3: JSON between <tool_call> and </tool_call>, once for each call."""

from ..parser import Source, Steps
from .format import CallTag, CallTags, ToolFormat, Tools, read_calls, read_json_call


def _read(source: Source, tools: Tools) -> Steps[None]:
    def call(mark: str) -> Steps[None]:
        yield from read_json_call(source, tools)
        yield from source.space()
        yield from source.mark("</tool_call>")

    yield from read_calls(source, ("<tool_call>",), call)


def _tags(name: str) -> tuple[CallTag, ...]:
    return (CallTag(f'\n{{"name": "{name}", "arguments": ', "}\n</tool_call>"),)


HERMES = ToolFormat(
    "hermes",
    _read,
    ("<tool_call>", "</tool_call>"),
    ("<tool_call>", "<args-"),
    tags=CallTags("<tool_call>", _tags),
)
