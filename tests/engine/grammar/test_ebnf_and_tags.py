"""EBNF grammars and structural tags, with each library that has them."""

import json
import random
import re
from collections.abc import Iterator

import pytest

from radixmesh.backends.fake.backend import IM_END, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import GrammarError
from radixmesh.engine.grammar.grammar import GrammarSpec, Matcher
from radixmesh.engine.grammar.registry import Library, load_library
from radixmesh.engine.text.tokenizer import load_tokenizer
from tests.engine.grammar.walk import allowed, vocabulary, walk

BYTES = vocabulary(load_tokenizer(str(TOKENIZER)), {IM_END}, vocab_size=300)  # as of a padded model
LISTS = 'root ::= "[" item ("," item)* "]"\nitem ::= "0" | [1-9] [0-9]* | root'
RECORD = r"""
root ::= "(" item ("; " item){1,3} ")"
item ::= name "=" value   # a comment
name ::= [a-z]{2,8}
value ::= "-"? [1-9] [0-9]{0,3} | "\"" [^"\\\x00-\x1F]* "\"" | "yes" | "no"
"""
ITEM = r'[a-z]{2,8}=(-?[1-9][0-9]{0,3}|"[^"\\\x00-\x1f]*"|yes|no)'
TAGS = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"},
        {"begin": "<f=b>", "schema": {"enum": ["x", "y"]}, "end": "</f>"},
    ],
    "triggers": ["<f="],
}


@pytest.fixture(scope="module", params=["llguidance", "xgrammar"])
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    config = EngineConfig.from_options(grammar_backend=request.param, grammar_timeout=60.0)
    made = load_library(config, BYTES)
    yield made
    made.close()


def finished(library: Library, grammar: str) -> list[str]:
    """Random outputs that came to their end."""
    compiled = library.compile(GrammarSpec("ebnf", grammar))
    texts = [walk(compiled.matcher(), BYTES, random.Random(seed)) for seed in range(20)]
    done = [text.decode() for text in texts if text is not None]
    assert len(done) >= 5
    return done


def test_what_a_recursive_grammar_writes_parses(library: Library) -> None:
    assert all(isinstance(json.loads(text), list) for text in finished(library, LISTS))


def test_classes_repeats_and_comments(library: Library) -> None:
    for text in finished(library, RECORD):
        assert re.fullmatch(rf"\({ITEM}(; {ITEM}){{1,3}}\)", text), text


def test_bad_grammars_are_refused_and_others_go_on(library: Library) -> None:
    for text in ("root ::= missing", "what is this", 'other ::= "a"'):
        with pytest.raises(GrammarError):
            library.compile(GrammarSpec("ebnf", text))
    assert finished(library, LISTS)


def fed(matcher: Matcher, text: str) -> Matcher:
    """A matcher after a text, each of whose bytes has to be allowed."""
    for byte in text.encode():
        assert byte in allowed(matcher, len(BYTES)), chr(byte)
        matcher.accept(byte)
    return matcher


def test_a_trigger_begins_a_tag_and_all_else_is_free(library: Library) -> None:
    grammar = library.compile(GrammarSpec("structural_tag", json.dumps(TAGS)))
    matcher = fed(grammar.matcher(), "free text, < and <f> and ä")
    assert IM_END in allowed(matcher, len(BYTES))
    fed(matcher, "<f=")
    assert allowed(matcher, len(BYTES)) == [ord("a"), ord("b")]
    fed(matcher, "b>")
    assert set(allowed(matcher, len(BYTES))) <= set(b'" \n\t\r')  # white space, or a value of the schema
    fed(matcher, '"')
    assert allowed(matcher, len(BYTES)) == [ord("x"), ord("y")]
    fed(matcher, 'y"')
    assert IM_END not in allowed(matcher, len(BYTES))
    fed(matcher, "</f> free again <f=a>-12</f>")
    assert IM_END in allowed(matcher, len(BYTES))


def test_a_tag_that_has_begun_has_to_end(library: Library) -> None:
    grammar = library.compile(GrammarSpec("structural_tag", json.dumps(TAGS)))
    ids = allowed(fed(grammar.matcher(), "<f=a>12"), len(BYTES))
    assert set(b"0123456789<") <= set(ids) and not {ord("a"), ord('"'), IM_END} & set(ids)


def test_structural_tags_that_are_none_are_refused(library: Library) -> None:
    untriggered = TAGS | {"triggers": ["<g"]}
    bad: list[object] = [{}, {"structures": [], "triggers": []}, TAGS | {"triggers": []}, untriggered]
    for tags in bad:
        with pytest.raises(GrammarError):
            library.compile(GrammarSpec("structural_tag", json.dumps(tags)))


def test_xgrammars_own_form_of_structural_tags(library: Library) -> None:
    inner: dict[str, object] = {"type": "json_schema", "json_schema": {"enum": [1, 2]}}
    own = {
        "type": "structural_tag",
        "format": {"type": "tag", "begin": "<t>", "content": inner, "end": "</t>"},
    }
    spec = GrammarSpec("structural_tag", json.dumps(own))
    if type(library).__name__ == "LlguidanceLibrary":
        with pytest.raises(GrammarError, match="accepted is"):
            library.compile(spec)
        return
    inner["json_schema"] = {"type": "string", "minLength": 1}
    with pytest.raises(GrammarError, match="cannot do minLength"):
        library.compile(GrammarSpec("structural_tag", json.dumps(own)))
    matcher = fed(library.compile(spec).matcher(), "<t>")
    assert {ord("1"), ord("2")} <= set(allowed(matcher, len(BYTES)))
    assert allowed(fed(matcher, "2</t>"), len(BYTES)) == [IM_END]
