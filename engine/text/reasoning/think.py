"""Thinking between <think> and </think>, at the beginning of an answer: Qwen 3, DeepSeek R1 and many more."""

from functools import partial

from ..parser import Reasoning, Source, Steps, tell_rest, tell_until
from .format import ReasoningFormat

_BEGIN, _END = "<think>", "</think>"


def _read(source: Source, prompt: str, always: bool) -> Steps[None]:
    """`always`: the model thinks without being told to, unless the prompt has ended its thinking."""
    before = prompt.rstrip()
    begun = before.endswith(_BEGIN) or (always and not before.endswith(_END))
    yield from source.space()
    if (yield from source.mark(_BEGIN)) or begun:
        yield from source.space()
        source.tell()
        yield from tell_until(source, (_END,), Reasoning)
        yield from source.space()
        source.tell()
    yield from tell_rest(source)


DEEPSEEK_R1 = ReasoningFormat("deepseek-r1", partial(_read, always=True), (_BEGIN, _END))
QWEN3 = ReasoningFormat("qwen3", partial(_read, always=False), (_BEGIN, _END))
