"""`IncrementalDetokenizer`: token ids to text as they come, equal to decoding them all at once."""

import codecs
from collections.abc import Iterable
from typing import Protocol

from .tokenizer import Tokenizer, byte_level_bytes, byte_value, decoder_kind


class IncrementalDetokenizer:
    """Joined deltas and `flush()` equal `tokenizer.decode(ids)`; no delta ends within a character.

    A token costs the same however many came before.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = _decoder(tokenizer)

    def add(self, token_ids: Iterable[int]) -> str:
        """The text that is certain now and was not before."""
        return "".join(self._decoder.add(index) for index in token_ids if index not in self._skipped)

    def flush(self) -> str:
        """What was held back, with U+FFFD for bytes that are no character. Nothing may be added after."""
        return self._decoder.flush()


class _Decoder(Protocol):
    def add(self, index: int) -> str: ...
    def flush(self) -> str: ...


def _decoder(tokenizer: Tokenizer) -> _Decoder:
    kind = decoder_kind(tokenizer.decoder)
    if kind == "byte_level":
        return _ByteLevel(tokenizer)
    if kind == "sentencepiece":
        return _SentencePiece(
            tokenizer, strips="decoders" in tokenizer.decoder and len(tokenizer.decoder["decoders"]) > 3
        )
    return _Window(tokenizer)


class _ByteLevel:
    """Tokens are bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, index: int) -> str:
        token = self._tokenizer.token(index)
        return self._utf8.decode(byte_level_bytes(token)) if token is not None else ""

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _SentencePiece:
    """Tokens are text, or single bytes.

    A run of bytes is text only if all of it is UTF-8, so it is held back until it ends. The first space
    of the whole text is dropped where the tokenizer puts one in front (`strips`).
    """

    def __init__(self, tokenizer: Tokenizer, strips: bool) -> None:
        self._tokenizer = tokenizer
        self._strips = strips
        self._run = bytearray()

    def add(self, index: int) -> str:
        token = self._tokenizer.token(index)
        if token is None:
            return ""
        piece = token.replace("▁", " ")
        value = byte_value(piece)
        if value is not None:
            self._run.append(value)
            return ""
        return self._strip(self._end_run() + piece)

    def flush(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "�" * len(run)

    def _strip(self, text: str) -> str:
        if not text or not self._strips:
            return text
        self._strips = False
        return text.removeprefix(" ")


class _Window:
    """Any other decoder: decode the last tokens with and without the new one; the difference is new."""

    LONGEST = 16  # tokens held back at most for the sake of a character that is not whole

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # tokens of the window whose text is out

    def add(self, index: int) -> str:
        self._ids.append(index)
        if len(self._ids) - self._shown < self.LONGEST and self._text(self._ids).endswith("�"):
            return ""
        return self.flush()

    def flush(self) -> str:
        before = self._text(self._ids[: self._shown])
        text = self._text(self._ids)[len(before) :]
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)
