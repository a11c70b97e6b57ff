"""llguidance behind our interface, over byte-level and byte-fallback vocabularies."""

import json
import random
import re
from typing import Any

import pytest

from radixmesh.backends.fake.backend import IM_END, TOKENIZER
from radixmesh.engine.errors import GrammarError
from radixmesh.engine.grammar.check import MAX_CHOICES
from radixmesh.engine.grammar.grammar import GrammarSpec
from radixmesh.engine.grammar.llguidance import LlguidanceLibrary
from radixmesh.engine.text.tokenizer import load_tokenizer
from tests.engine.grammar.walk import allowed, vocabulary, walk

BYTES = vocabulary(load_tokenizer(str(TOKENIZER)), {IM_END}, vocab_size=300)  # as of a padded model
LIBRARY = LlguidanceLibrary(BYTES, compact_json=False)
PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
UNTRIGGERED = '{"structures": [{"begin": "a", "schema": {}, "end": ""}], "triggers": ["b"]}'
JSON = GrammarSpec("json_schema", PERSON)


def outputs(spec: GrammarSpec, count: int = 10) -> list[str]:
    """Random finished outputs."""
    grammar = LIBRARY.compile(spec)
    texts = [walk(grammar.matcher(), BYTES, random.Random(seed)) for seed in range(count * 3)]
    done = [text.decode() for text in texts if text is not None]
    assert len(done) >= count
    return done


def test_json_schema() -> None:
    for text in outputs(JSON):
        value = json.loads(text)
        assert set(value) == {"name", "age"} and value["age"] >= 0 and len(value["name"]) <= 20


def test_json_object() -> None:
    assert all(isinstance(json.loads(text), dict) for text in outputs(GrammarSpec("json_object")))


def test_regex() -> None:
    pattern = r"(yes|no)-[0-9]{2,4}[a-zäöü]?"
    assert all(re.fullmatch(pattern, text) for text in outputs(GrammarSpec("regex", pattern)))


def test_choices() -> None:
    choices = ["red", "green", 'a "quoted" one', "zwölf\n"]
    assert set(outputs(GrammarSpec("choices", json.dumps(choices)), 20)) == set(choices)


def test_as_many_choices_as_are_accepted() -> None:
    choices = [f"number {index}" for index in range(MAX_CHOICES)]
    assert set(outputs(GrammarSpec("choices", json.dumps(choices)), 5)) <= set(choices)


def test_a_choice_that_another_begins_with() -> None:
    matcher = LIBRARY.compile(GrammarSpec("choices", '["a", "ab", "abc", "b"]')).matcher()
    for byte, following in ((b"a", {ord("b"), IM_END}), (b"b", {ord("c"), IM_END}), (b"c", {IM_END})):
        matcher.accept(byte[0])
        assert set(allowed(matcher, len(BYTES))) == following


def test_outputs_of_one_grammar_do_not_know_of_each_other() -> None:
    grammar = LIBRARY.compile(GrammarSpec("choices", '["ab", "cd"]'))
    first, second = grammar.matcher(), grammar.matcher()
    first.accept(ord("a"))
    assert allowed(first, len(BYTES)) == [ord("b")]
    assert allowed(second, len(BYTES)) == [ord("a"), ord("c")]


def test_what_is_complete_ends() -> None:
    matcher = LIBRARY.compile(GrammarSpec("choices", '["ab"]')).matcher()
    for byte in b"ab":
        matcher.accept(byte)
    assert allowed(matcher, len(BYTES)) == [IM_END]


def test_a_token_that_may_not_come_is_an_error() -> None:
    matcher = LIBRARY.compile(GrammarSpec("choices", '["ab"]')).matcher()
    with pytest.raises(GrammarError):
        matcher.accept(ord("z"))


def test_forced_tokens_are_the_usual_ones_of_the_text() -> None:
    compact = LlguidanceLibrary(BYTES, compact_json=True)
    matcher = compact.compile(JSON).matcher()
    assert bytes(matcher.forced()) == b'{"name":"'
    for byte in b'{"name":"x"':
        matcher.accept(byte)
    assert bytes(matcher.forced()).startswith(b',"age":')


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", '{"type": "objekt"}', "objekt"),
        ("json_schema", '{"type": "string", "pattern": "("}', "unclosed"),
        ("json_schema", '{"$ref": "#/$defs/none"}', "none"),
        ("json_schema", '{"$ref": "#"}', "NoExtension"),
        ("json_schema", '{"not": {"type": "string"}}', "not"),
        ("regex", "(a", "unclosed"),
        ("regex", "((((((a{1,50}){1,50}){1,50}){1,50}){1,50}){1,50})", "too"),
        ("regex", "(a?){3000}a{3000}", "too"),
        ("ebnf", "root ::= missing", "missing"),
        ("ebnf", "root ::= root", "NoExtension"),
        ("ebnf", "what is this", "Expected"),
        ("structural_tag", "{}", "structures"),
        ("structural_tag", UNTRIGGERED, "begin"),
    ],
)  # fmt: skip
def test_bad_grammars_are_refused_with_the_reason(kind: Any, text: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(reason)):
        LIBRARY.compile(GrammarSpec(kind, text))
