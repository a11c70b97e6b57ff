"""The message headers of OpenAI's harmony format, which gpt-oss writes."""

import re

from .parser import Malformed, Source, Steps

BEGINS = ("<|start|>", "<|channel|>")
ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKS = (*BEGINS, *ENDS, "<|constrain|>", "<|message|>")

_WORDS = re.compile(r"[^<\n{]*")


def read_header(source: Source) -> Steps[str]:
    """Read the rest of a header, up to and with <|message|>; its words, each mark a space.

    Raises Malformed if there is no such header.
    """
    header = yield from source.run(_WORDS)
    while not (yield from source.mark("<|message|>")):
        if not ((yield from source.mark("<|channel|>")) or (yield from source.mark("<|constrain|>"))):
            raise Malformed
        header += " " + (yield from source.run(_WORDS))
    return header
