"""Grammars by outlines-core (https://github.com/dottxt-ai/outlines-core): finite automata over tokens.
Nothing stops its compiler, so that it runs in a helper process."""

import json
import re
from collections.abc import Sequence

from outlines_core import Guide, Index, Vocabulary
from outlines_core.json_schema import build_regex_from_schema

from ..errors import GrammarError
from . import vocabulary as ours
from .compiler_process import Compiler, Helpers
from .grammar import GrammarKind, GrammarSpec, Mask
from .keywords import ANNOTATIONS, check_keywords
from .masks import ids_of, mask_of, only_token

_KEYWORDS = ANNOTATIONS | {
    "$ref", "$defs", "definitions", "type", "enum", "const", "anyOf", "properties", "required",
    "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "pattern", "minLength",
    "maxLength",
}  # fmt: skip


class OutlinesLibrary:
    """Compiles what can be a regular expression."""

    kinds: frozenset[GrammarKind] = frozenset({"json_schema", "regex", "choices"})

    def __init__(self, vocabulary: ours.Vocabulary, compact_json: bool, timeout: float) -> None:
        self._ends = mask_of(vocabulary.eos_ids, len(vocabulary))
        self._helpers = Helpers("outlines", vocabulary, compact_json, timeout)

    def compile(self, spec: GrammarSpec) -> "OutlinesGrammar":
        """Raises GrammarError with the library's reason."""
        return OutlinesGrammar(Index.from_binary(self._helpers.compile(spec)), self._ends)

    def close(self) -> None:
        """End the helper processes."""
        self._helpers.close()


class OutlinesGrammar:
    """A compiled grammar."""

    def __init__(self, index: Index, ends: Mask) -> None:
        self._index, self._ends = index, ends

    def matcher(self) -> "OutlinesMatcher":
        return OutlinesMatcher(Guide(self._index), self._ends)


class OutlinesMatcher:
    """The library knows one token that ends the output; here all do. Its last mask tells what is forced."""

    def __init__(self, guide: Guide, ends: Mask) -> None:
        self._guide, self._ends = guide, ends
        self._mask: Mask | None = None

    def fill_mask(self, mask: Mask) -> None:
        self._guide.write_mask_into(mask.ctypes.data, mask.size, mask.itemsize)
        if self._guide.is_finished():
            mask |= self._ends
        if not mask.any():
            raise GrammarError("no token may come next")
        self._mask = mask.copy()

    def accept(self, token_id: int) -> None:
        self._mask = None
        if self._guide.is_finished() and token_id in ids_of(self._ends):
            return
        try:
            self._guide.advance(token_id, return_tokens=False)
        except ValueError as error:
            raise GrammarError(f"token {token_id} may not come next") from error

    def forced(self) -> list[int]:
        if self._mask is None:
            return []
        return only_token(self._mask)


class _Compiler:
    def __init__(self, words: Sequence[bytes], eos_ids: Sequence[int], compact_json: bool) -> None:
        by_text: dict[bytes, list[int]] = {}
        for index, word in enumerate(words):
            if word and index not in eos_ids:
                by_text.setdefault(word, []).append(index)
        self._vocabulary = Vocabulary(eos_ids[0], by_text)
        self._whitespace = "" if compact_json else None

    def compile(self, spec: GrammarSpec) -> bytes:
        _, (binary,) = Index(self._regex(spec), self._vocabulary).__reduce__()
        return bytes(binary)

    def _regex(self, spec: GrammarSpec) -> str:
        if spec.kind == "regex":
            return spec.text
        value = json.loads(spec.text)
        if spec.kind == "choices":
            return "|".join(map(re.escape, value))
        check_keywords(value, _KEYWORDS)
        regex: str = build_regex_from_schema(spec.text, self._whitespace)
        return regex


def compiler(words: Sequence[bytes], eos_ids: Sequence[int], compact_json: bool) -> Compiler:
    """What runs in the helper process."""
    return _Compiler(words, eos_ids, compact_json)
