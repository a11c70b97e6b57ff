"""Grammars by xgrammar (https://github.com/mlc-ai/xgrammar): pushdown automata with masks made beforehand.
Nothing stops its compiler, so that it runs in a helper process."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import GrammarError
from .compiler_process import Compiler, Helpers
from .grammar import GrammarKind, GrammarSpec, Mask
from .keywords import ANNOTATIONS, check_keywords
from .masks import mask_of, only_token
from .structural_tag import read_structural_tag
from .vocabulary import Vocabulary

if TYPE_CHECKING:  # it brings torch
    import xgrammar

# What it honours to the letter. Others it ignores, or reads loosely: strings of bounded length may have
# control characters, a date may be September 31, and oneOf is anyOf.
_KEYWORDS = ANNOTATIONS | {
    "$ref", "$defs", "definitions", "type", "enum", "const", "anyOf", "properties", "required",
    "additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "minProperties",
    "maxProperties", "items", "prefixItems", "unevaluatedItems", "minItems", "maxItems", "pattern",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip


class XgrammarLibrary:
    """Compiles all kinds of grammars."""

    kinds: frozenset[GrammarKind] = frozenset(
        {"json_object", "json_schema", "regex", "ebnf", "choices", "structural_tag"}
    )

    def __init__(self, vocabulary: Vocabulary, compact_json: bool, timeout: float) -> None:
        words = [b"" if i in vocabulary.special_ids else each for i, each in enumerate(vocabulary.tokens)]
        self._info = _info(words, sorted(vocabulary.eos_ids))
        self._known = mask_of(range(len(words)), len(words))
        self._helpers = Helpers("xgrammar", vocabulary, compact_json, timeout)

    def compile(self, spec: GrammarSpec) -> "XgrammarGrammar":
        """Raises GrammarError with the library's reason."""
        import xgrammar

        text = self._helpers.compile(spec).decode()
        compiled = xgrammar.CompiledGrammar.deserialize_json(text, self._info)
        return XgrammarGrammar(compiled, self._known)

    def close(self) -> None:
        """End the helper processes."""
        self._helpers.close()


class XgrammarGrammar:
    """A compiled grammar."""

    def __init__(self, compiled: "xgrammar.CompiledGrammar", known: Mask) -> None:
        self._compiled, self._known = compiled, known

    def matcher(self) -> "XgrammarMatcher":
        import xgrammar

        return XgrammarMatcher(xgrammar.GrammarMatcher(self._compiled), self._known)


class XgrammarMatcher:
    """Its last mask tells what is forced. `known` masks ids that the last word has beyond the vocabulary."""

    def __init__(self, matcher: "xgrammar.GrammarMatcher", known: Mask) -> None:
        self._matcher, self._known = matcher, known
        self._mask: Mask | None = None

    def fill_mask(self, mask: Mask) -> None:
        self._matcher.fill_next_token_bitmask(mask.view(np.int32)[None])
        mask &= self._known
        if not mask.any():
            raise GrammarError("no token may come next")
        self._mask = mask.copy()

    def accept(self, token_id: int) -> None:
        self._mask = None
        if not self._matcher.accept_token(token_id):
            raise GrammarError(f"token {token_id} may not come next")

    def forced(self) -> list[int]:
        if self._mask is None:
            return []
        return only_token(self._mask)


class _Compiler:
    def __init__(self, info: "xgrammar.TokenizerInfo", compact_json: bool) -> None:
        import xgrammar

        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._compact = compact_json

    def compile(self, spec: GrammarSpec) -> bytes:
        return self._compiled(spec).serialize_json().encode()

    def _compiled(self, spec: GrammarSpec) -> "xgrammar.CompiledGrammar":
        match spec.kind:
            case "json_object":
                return self._schema('{"type": "object"}')
            case "json_schema":
                check_keywords(json.loads(spec.text), _KEYWORDS)
                return self._schema(spec.text)
            case "regex":
                return self._compiler.compile_regex(spec.text)
            case "ebnf":
                return self._compiler.compile_grammar(spec.text)
            case "choices":
                return self._compiler.compile_regex("|".join(map(re.escape, json.loads(spec.text))))
            case "structural_tag":
                return self._compiler.compile_structural_tag(_structural_tag(spec.text))
            case "text" | "calls":
                raise AssertionError("no library is asked for free text")

    def _schema(self, text: str) -> "xgrammar.CompiledGrammar":
        return self._compiler.compile_json_schema(
            text,
            any_whitespace=not self._compact,
            separators=(",", ":") if self._compact else None,
            strict_mode=False,
        )


def _structural_tag(text: str) -> str:
    """A structural tag in the library's own form, from that one or from ours."""
    value = json.loads(text)
    if "format" in value:
        for schema in _schemas(value["format"]):
            check_keywords(schema, _KEYWORDS)
        return text
    tags = read_structural_tag(text)
    for tag in tags:
        check_keywords(tag.schema, _KEYWORDS)
    inner = [
        {"begin": tag.begin, "content": {"type": "json_schema", "json_schema": tag.schema}, "end": tag.end}
        for tag in tags
    ]
    triggers = list(dict.fromkeys(tag.trigger for tag in tags))
    triggered = {"type": "triggered_tags", "triggers": triggers, "tags": inner}
    return json.dumps({"type": "structural_tag", "format": triggered})


def _schemas(form: Any) -> Iterator[Any]:
    """The JSON schemas in a structural tag's format."""
    if isinstance(form, dict) and form.get("type") == "json_schema":
        yield form.get("json_schema")
        return
    for each in form.values() if isinstance(form, dict) else form if isinstance(form, list) else ():
        yield from _schemas(each)


def _info(words: Sequence[bytes], eos_ids: Sequence[int]) -> "xgrammar.TokenizerInfo":
    import xgrammar

    return xgrammar.TokenizerInfo(
        list(words), xgrammar.VocabType.RAW, vocab_size=len(words), stop_token_ids=list(eos_ids)
    )


def compiler(words: Sequence[bytes], eos_ids: Sequence[int], compact_json: bool) -> Compiler:
    """What runs in the helper process."""
    return _Compiler(_info(words, eos_ids), compact_json)
