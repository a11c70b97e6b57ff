"""Texts that mark where something begins or ends in an output, looked for token by token."""

from ..errors import GrammarError
from .grammar import Mask
from .masks import mask_of
from .vocabulary import Vocabulary


class Words:
    """A vocabulary by what its tokens write; special ones write their names, as marks do."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """100,000 tokens take some hundredths of a second: not in the step loop."""
        self.vocabulary = vocabulary
        self.all = mask_of(range(len(vocabulary)), len(vocabulary))
        self.ends = mask_of(sorted(vocabulary.eos_ids), len(vocabulary))  # the tokens that end an output
        self._ids: dict[bytes, list[int]] = {}
        for index, word in enumerate(vocabulary.tokens):
            if word:
                self._ids.setdefault(word, []).append(index)
        self._longest = max(map(len, self._ids), default=0)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def bytes_of(self, token_id: int) -> bytes:
        """What a token writes."""
        return self.vocabulary.tokens[token_id]

    def spell(self, text: bytes) -> list[int]:
        """The usual tokens of `text`; the longest ones that fit where those would write anything else.

        Raises GrammarError if no tokens write it.
        """
        ids = self.vocabulary.encode(text.decode(errors="replace"))
        if b"".join(map(self.bytes_of, ids)) == text:
            return ids
        ids, at = [], 0
        while at < len(text):
            sizes = range(min(self._longest, len(text) - at), 0, -1)
            size = next((size for size in sizes if text[at : at + size] in self._ids), 0)
            if not size:
                raise GrammarError(f"the model has no tokens that write {text.decode(errors='replace')}")
            ids.append(self._ids[text[at : at + size]][0])
            at += size
        return ids

    def beginning(self, text: bytes) -> list[int]:
        """Tokens that write a beginning of `text`, or all of it."""
        sizes = range(1, min(self._longest, len(text)) + 1)
        return [index for size in sizes for index in self._ids.get(text[:size], ())]


class Mark:
    """A text, and which tokens would write its end and more: after it something else begins, with a token.

    How far an output is in it is the number of its bytes that the output ends with, the most of them.
    """

    def __init__(self, text: str, words: Words) -> None:
        self.text, self.words = text.encode(), words
        self._back = _borders(self.text)
        last = tuple(self.text[at:] for at in range(len(self.text)))
        tokens = enumerate(words.vocabulary.tokens)
        maybe = [index for index, word in tokens if word.startswith(last) or self.text in word]
        self.crossing: dict[int, Mask] = {}  # by how far an output is; where there are none, not at all
        for at in range(len(self.text)):
            found = [index for index in maybe if self._crosses(at, words.bytes_of(index))]
            if found:
                self.crossing[at] = mask_of(found, len(words))

    def follow(self, at: int, token_id: int) -> int:
        """How far an output is in it that was at `at`, after one more token; all of it is `len(text)`."""
        for byte in self.words.bytes_of(token_id):
            at = self._next(at, byte)
            if at == len(self.text):
                return at
        return at

    def forbid_crossing(self, at: int, mask: Mask) -> None:
        """Take from `mask` what would write its end and more."""
        if at in self.crossing:
            mask &= ~self.crossing[at]

    def _crosses(self, at: int, word: bytes) -> bool:
        for byte in word[:-1]:
            at = self._next(at, byte)
            if at == len(self.text):
                return True
        return False

    def _next(self, at: int, byte: int) -> int:
        while at and self.text[at] != byte:
            at = self._back[at - 1]
        return at + 1 if self.text[at] == byte else 0


def _borders(text: bytes) -> list[int]:
    """For each beginning of `text`, the longest shorter one that it ends with (Knuth, Morris and Pratt)."""
    borders = [0] * len(text)
    for index in range(1, len(text)):
        at = borders[index - 1]
        while at and text[at] != text[index]:
            at = borders[at - 1]
        borders[index] = at + 1 if text[at] == text[index] else 0
    return borders
