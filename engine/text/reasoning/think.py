"""Thinking between <think> and </think>, at the beginning of an answer: Qwen 3, DeepSeek R1 and many more."""

from functools import partial

from ...grammar.grammar import Thinking
from ..parser import Reasoning, Source, Steps, tell_rest, tell_until
from .format import ReasoningFormat

_BEGIN, _END = "<think>", "</think>"


def _read(source: Source, prompt: str, always: bool) -> Steps[None]:
    thinking = _thinking(prompt, always)
    yield from source.space()
    if (yield from source.mark(_BEGIN)) or (thinking is not None and not thinking.begin):
        yield from source.space()
        source.tell()
        yield from tell_until(source, (_END,), Reasoning)
        yield from source.space()
        source.tell()
    yield from tell_rest(source)


def _thinking(prompt: str, always: bool) -> Thinking | None:
    """`always`: the model thinks without being told to, unless the prompt has ended its thinking."""
    before = prompt.rstrip()
    if before.endswith(_END):
        return None
    return Thinking("" if always or before.endswith(_BEGIN) else _BEGIN, _END)


DEEPSEEK_R1 = ReasoningFormat(
    "deepseek-r1", partial(_read, always=True), (_BEGIN, _END), partial(_thinking, always=True)
)
QWEN3 = ReasoningFormat(
    "qwen3", partial(_read, always=False), (_BEGIN, _END), partial(_thinking, always=False)
)
