"""Filling in the middle: a prompt and what must follow, as code models were taught to read them.

Bavarian et al., "Efficient Training of Language Models to Fill in the Middle", arXiv:2207.14255.
"""

from collections.abc import Sequence

from .tokenizer import Tokenizer, decoder_kind

# Tokens that begin the prefix, the suffix, and the middle, which the model then writes.
_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
_MARKER = "☺"


def fim_marks(tokenizer: Tokenizer) -> tuple[int, int, int] | None:
    """The ids of the tokens before prefix, suffix and middle; None where the vocabulary has none."""
    for marks in _MARKS:
        ids = [tokenizer.token_id(mark) for mark in marks]
        if None not in ids:
            prefix, suffix, middle = (index for index in ids if index is not None)
            return prefix, suffix, middle
    return None


def fim_prompt(
    tokenizer: Tokenizer, marks: tuple[int, int, int], prefix: str | Sequence[int], suffix: str
) -> list[int]:
    """The prompt's token ids, for a text that stands between `prefix` (or its ids) and `suffix`."""
    begin: list[int] = []
    if isinstance(prefix, str):
        begin = tokenizer.begin_ids
        prefix = tokenizer.encode(prefix, add_special_tokens=False)
    return [*begin, marks[0], *prefix, marks[1], *_continuation(tokenizer, suffix), marks[2]]


def _continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text` in the midst of another: SentencePiece would put a space before its beginning."""
    if decoder_kind(tokenizer.decoder) != "sentencepiece":
        return tokenizer.encode(text, add_special_tokens=False)
    marker = tokenizer.encode(_MARKER, add_special_tokens=False)
    return tokenizer.encode(_MARKER + text, add_special_tokens=False)[len(marker) :]
