"""Random walks through a grammar, as a model without any idea would take them."""

import random

import numpy as np

from radixmesh.engine.grammar.grammar import Matcher
from radixmesh.engine.grammar.vocabulary import Vocabulary, vocabulary_of
from radixmesh.engine.runner import ModelInfo
from radixmesh.engine.text.tokenizer import Tokenizer


def vocabulary(tokenizer: Tokenizer, eos_ids: set[int], vocab_size: int | None = None) -> Vocabulary:
    size = vocab_size or tokenizer.vocab_size
    return vocabulary_of(tokenizer, ModelInfo("test", "", size, 4096, frozenset(eos_ids)))


def allowed(matcher: Matcher, vocab_size: int) -> list[int]:
    """The ids that the mask allows."""
    mask = np.full(-(-vocab_size // 32), 0xFFFFFFFF, np.uint32)  # what was there before does not matter
    matcher.fill_mask(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def walk(matcher: Matcher, vocabulary: Vocabulary, draw: random.Random, most: int = 400) -> bytes | None:
    """What a random output reads; None if it is not at its end after `most` tokens.

    The longer it gets, the more it likes to close what is open: shorter tokens, quotes and brackets.
    """
    text = b""
    for count in range(most):
        ids = allowed(matcher, len(vocabulary))
        assert ids and ids[-1] < len(vocabulary)
        ends = [index for index in ids if index in vocabulary.eos_ids]
        forced = matcher.forced()
        assert not forced or forced[:1] == ids
        closing = [index for index in ids if vocabulary.tokens[index] in (b'"', b"}", b"]", b'"}')]
        if ends and (len(ends) == len(ids) or draw.random() < 0.3):
            matcher.accept(draw.choice(ends))
            return text
        token = draw.choice(closing if closing and draw.random() < count / 60 else ids)
        if token in ends:
            matcher.accept(token)
            return text
        assert vocabulary.tokens[token], f"{token} writes nothing"
        assert token not in vocabulary.special_ids
        matcher.accept(token)
        text += vocabulary.tokens[token]
    return None
