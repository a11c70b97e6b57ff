"""DeepSeek V3, R1 and V3.1: calls between their own marks; before V3.1 with a type and a fence of code."""

from ..json_reader import next_char
from ..parser import Malformed, Source, Steps
from .format import NAME, CallTag, CallTags, ToolFormat, Tools, check_name, read_arguments, read_calls

_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEP = "<｜tool▁sep｜>"


def _read(source: Source, tools: Tools) -> Steps[None]:
    def calls(mark: str) -> Steps[None]:
        if mark == _ALL:
            yield from source.expect(_ONE)
        while True:
            yield from _call(source, tools)
            yield from source.space()
            if not (yield from source.mark(_ONE)):
                break
        yield from source.mark(_ALL_END)

    yield from read_calls(source, (_ALL, _ONE), calls)


def _call(source: Source, tools: Tools) -> Steps[None]:
    """`name SEP {...}`, or before V3.1 `function SEP name`, a line end and {...} in a fence of json."""
    name = yield from source.run(NAME)
    if not (yield from source.mark(_SEP)):
        raise Malformed
    fenced = (yield from next_char(source)) != "{"
    if fenced:
        name = yield from source.run(NAME)
        yield from source.expect("```json")
    yield from read_arguments(source, check_name(tools, name))
    if fenced:
        yield from source.space()
        yield from source.mark("```")
    yield from source.space()
    yield from source.mark(_ONE_END)


def _tags(name: str) -> tuple[CallTag, ...]:
    """A call since V3.1, or before."""
    fenced = CallTag(f"function{_SEP}{name}\n```json\n", "\n```" + _ONE_END)
    return CallTag(name + _SEP, _ONE_END), fenced


DEEPSEEK = ToolFormat(
    "deepseek", _read, (_ALL, _ALL_END, _ONE, _ONE_END, _SEP), (_ALL,), tags=CallTags(_ONE, _tags)
)
