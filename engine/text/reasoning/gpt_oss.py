"""gpt-oss: thinking is in messages to the channel "analysis"; what is said to the user, in the others."""

from ...grammar.grammar import Thinking
from ..harmony import BEGINS, ENDS, MARKS, read_header
from ..parser import Malformed, Reasoning, Source, Steps, Text, tell_until
from .format import ReasoningFormat


def _read(source: Source, prompt: str) -> Steps[None]:
    while (yield from tell_until(source, BEGINS, strip=False)) is not None:
        mark = source.at
        try:
            words = (yield from read_header(source)).split()
        except Malformed:
            source.at = mark
            yield Text(source.tell())
            continue
        if any(word.startswith("to=") for word in words):
            yield Text(source.tell())  # a call: whole, for the tool format
            continue
        source.tell()
        thinks = "analysis" in words
        end = yield from tell_until(source, ENDS + BEGINS, Reasoning if thinks else Text, strip=thinks)
        if end is not None and end in BEGINS:
            source.at -= len(end)
        source.tell()


def _thinking(prompt: str) -> Thinking | None:
    """All that comes before the final message, whose header may say more, as what it is written in."""
    if prompt.endswith("<|message|>") and "<|channel|>final" in prompt:
        return None
    return Thinking("", "<|channel|>final", "<|message|>")


# No budget: what comes before the final message may also be a call, and has headers, not to be cut.
GPT_OSS_REASONING = ReasoningFormat("gpt-oss", _read, MARKS, _thinking, has_budget=False)
