"""Thinking and calls over a tokenizer that merges bytes, over the ends of marks too: walks that always fit.

The tokenizer is trained here, on texts that make it merge so; with marks as tokens of their own, or without.
"""

import json
import random
from functools import cache
from typing import Any

import jsonschema
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from radixmesh.engine.config import EngineConfig
from radixmesh.engine.grammar.calls import read_calls_grammar
from radixmesh.engine.grammar.given import spec_of
from radixmesh.engine.grammar.grammar import GrammarSpec, Matcher, Thinking
from radixmesh.engine.grammar.marks import Mark, Words
from radixmesh.engine.grammar.registry import load_library
from radixmesh.engine.grammar.thinking import AnyText, ThinkingGrammar, ThinkingMarks
from radixmesh.engine.grammar.vocabulary import Vocabulary
from radixmesh.engine.text.tokenizer import Tokenizer as OurTokenizer
from radixmesh.engine.text.tools.hermes import HERMES
from radixmesh.engine.text.tools.strict import calls_text
from tests.engine.grammar.test_calls import FITS, STRICT, TOOLS, read
from tests.engine.grammar.walk import allowed, vocabulary

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
TEXTS = [
    '<think>so it is</think>{"a": 12, "b": "yy"}',
    'x</think>\n\n{"a":1,"b":"x"}>\n\n">x>{',
    '<tool_call>\n{"name": "now_in", "arguments": {"zone": "UTC", "hours": [1, 22]}}\n</tool_call>\n\n',
    '<tool_call>{"name": "loose", "arguments": {}}}\n</tool_call>}}\n</',
]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@cache
def words(with_marks: bool) -> Words:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Split("§", "isolated")  # merges may go over anything
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [made.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = [text[at : at + size] for text in TEXTS for at in range(len(text)) for size in (4, 6, 9)]
    made.train_from_iterator(TEXTS * 5 + pieces, trainer)
    if with_marks:
        made.add_tokens([AddedToken(mark, special=mark.startswith("</")) for mark in MARKS])
    ours = OurTokenizer(PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>"))
    (end,) = ours.encode("<|end|>", add_special_tokens=False)
    return Words(vocabulary(ours, {end}))


def walk(
    matcher: Matcher, words: Vocabulary, draw: random.Random, most: int = 200
) -> tuple[list[int], bytes]:
    """Random tokens, and what they write up to an end. At times it writes a mark, in any tokens that do; it
    likes to close what is open."""
    output: list[int] = []
    meant = b""
    while len(output) < most and words.eos_ids.isdisjoint(output):
        ids, forced = allowed(matcher, len(words)), matcher.forced()
        assert ids and (not forced or forced[:1] == ids)
        if not meant and draw.random() < 0.2:
            meant = draw.choice(MARKS).encode()
        writing = [index for index in ids if words.tokens[index] and meant.startswith(words.tokens[index])]
        closing = [index for index in ids if words.tokens[index] in (b'"', b"}", b"]", b'"}')]
        if forced and draw.random() < 0.5:
            took = forced
        else:
            took = [draw.choice(writing or (closing if closing and draw.random() < 0.4 else ids))]
        meant = meant[len(words.tokens[took[0]]) :] if writing and took[0] in writing else b""
        for token in took:
            matcher.accept(token)
        output += took
    return output, b"".join(words.tokens[index] for index in output if index not in words.eos_ids)


def test_the_tokenizer_merges_over_ends() -> None:
    plain, marked = words(False), words(True)
    assert any(word.startswith(b">") and len(word) > 1 for word in plain.vocabulary.tokens)
    assert Mark("</think>", plain).crossing
    assert len(marked.spell(b"</think>")) == 1 < len(plain.spell(b"</think>"))


@pytest.mark.parametrize("with_marks", [True, False])
@pytest.mark.parametrize("begin", ["", "<think>"])
@pytest.mark.parametrize("budget", [None, 0, 5])
def test_answers_fit_after_any_thinking(with_marks: bool, begin: str, budget: int | None) -> None:
    known = words(with_marks)
    library = load_library(EngineConfig(constrained_json_disable_any_whitespace=True), known.vocabulary)
    answer = library.compile(GrammarSpec("json_schema", json.dumps(SCHEMA)))
    grammar = ThinkingGrammar(ThinkingMarks(Thinking(begin, "</think>"), known), answer, False)
    finished = 0
    for seed in range(40):
        ids, text = walk(grammar.matcher(budget), known.vocabulary, random.Random(seed))
        if ids[-1] not in known.vocabulary.eos_ids:
            continue
        finished += 1
        thinks = text.startswith(begin.encode())
        thoughts, _, answered = text.partition(b"</think>") if thinks else (b"", b"", text)
        jsonschema.validate(json.loads(answered), SCHEMA)
        if thinks and budget is not None:
            size, spent = 0, 0  # tokens of which any byte is a thought's
            for index in ids:
                spent += len(begin) <= size < len(thoughts)
                size += len(known.bytes_of(index))
            assert spent <= budget
    assert finished > 10
    library.close()


@pytest.mark.parametrize("with_marks", [True, False])
@pytest.mark.parametrize("thinks", [True, False])
def test_calls_fit_in_any_text(with_marks: bool, thinks: bool) -> None:
    known = words(with_marks)
    library = load_library(EngineConfig(constrained_json_disable_any_whitespace=True), known.vocabulary)
    assert HERMES.tags is not None
    held: Any = read_calls_grammar(
        spec_of("calls", calls_text(HERMES.tags, TOOLS, STRICT)).text, known, library.compile
    )
    if thinks:
        held = ThinkingGrammar(ThinkingMarks(Thinking("", "</think>", "", 9), known), held, True)
    whole = 0
    for seed in range(25):
        ids, raw = walk(held.matcher(), known.vocabulary, random.Random(seed))
        text = raw.decode(errors="replace")
        if thinks:
            text = text.partition("</think>")[2]
        calls, _ = read(HERMES, text)
        begun = text.count("<tool_call>") - sum(each[1].count("<tool_call>") for each in calls)
        ended = [each for each in calls if each[2]]
        assert begun - 1 <= len(ended) <= begun
        if ids[-1] in known.vocabulary.eos_ids:
            assert len(ended) == begun
        for name, arguments, _ in ended:
            jsonschema.validate(json.loads(arguments), FITS[name])
        whole += len(ended)
    assert whole > 10
    library.close()


def test_a_budget_alone_leaves_the_rest_free() -> None:
    known = words(False)
    marks = ThinkingMarks(Thinking("", "</think>"), known)
    matcher = ThinkingGrammar(marks, AnyText(), True).matcher(3)
    for _ in range(3):
        (token,) = known.spell(b"x")
        assert len(allowed(matcher, len(known))) == len(known)
        matcher.accept(token)
    assert matcher.forced() == known.spell(b"</think>")
