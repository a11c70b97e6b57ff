"""Seventy schemas as people write them: whatever a library lets through, once it is finished, validates."""

import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from radixmesh.backends.fake.backend import IM_END, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import GrammarError
from radixmesh.engine.grammar.grammar import GrammarSpec
from radixmesh.engine.grammar.registry import Library, load_library
from radixmesh.engine.text.tokenizer import load_tokenizer
from tests.engine.grammar.walk import vocabulary, walk

LINES = (Path(__file__).parent / "schemas.jsonl").read_text().splitlines()
SCHEMAS: dict[str, Any] = {each["name"]: each["schema"] for each in map(json.loads, LINES)}
# What a library cannot do, by the words in a schema's text. outlines needs minutes for a long string.
REFUSED = {
    "llguidance": r'"unevaluatedProperties"',
    "xgrammar": r'"(allOf|oneOf|format|minLength|maxLength|multipleOf)"',
    "outlines": r'"(allOf|oneOf|format|\w*[mM]inimum|multipleOf|(min|pattern)Properties)": '
    r'|^\{"type": "object", "additionalProperties": false\}',
}
SLOW = {"outlines": {"plain_string"}, "xgrammar": set(), "llguidance": set()}
WALKS = 6
BYTES = vocabulary(load_tokenizer(str(TOKENIZER)), {IM_END})


@cache
def library(name: str, compact: bool) -> Library:
    config = EngineConfig.from_options(
        grammar_backend=name, grammar_timeout=60.0, constrained_json_disable_any_whitespace=compact
    )
    return load_library(config, BYTES)


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    for name in REFUSED:
        for compact in (True, False):
            library(name, compact).close()


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("name", REFUSED)
def test_every_finished_output_validates(name: str, schema: str) -> None:
    spec = GrammarSpec("json_schema", json.dumps(SCHEMAS[schema], ensure_ascii=False))
    if schema in SLOW[name]:
        return
    if re.search(REFUSED[name], spec.text):
        with pytest.raises(GrammarError):
            library(name, True).compile(spec)
        return
    validator = Draft202012Validator(SCHEMAS[schema], format_checker=Draft202012Validator.FORMAT_CHECKER)
    finished = 0
    for compact in (True, False):
        grammar = library(name, compact).compile(spec)
        for seed in range(WALKS):
            text = walk(grammar.matcher(), BYTES, random.Random(f"{schema}{seed}"))
            if text is not None:
                # RFC 3339 knows leap seconds, and jsonschema's checker does not
                validator.validate(json.loads(re.sub(rb":60(?=[.Zz+-])", b":59", text)))
                finished += 1
    assert finished >= 2


def test_there_are_sixty_and_all_are_schemas() -> None:
    assert len(SCHEMAS) == len(LINES) >= 60
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)
