"""`Vocabulary`: what each token id stands for, in the form that all grammar libraries can be told."""

from collections.abc import Callable
from dataclasses import dataclass

from ..runner import ModelInfo
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model, which may have more ids than its tokenizer knows.

    `tokens[i]` are the bytes that id i writes; they are empty for an id that writes none, and no grammar
    ever allows it. Special tokens have their name as bytes and are known by `special_ids`.
    """

    tokens: tuple[bytes, ...]
    special_ids: frozenset[int]
    eos_ids: frozenset[int]
    encode: Callable[[str], list[int]]  # the usual tokens of a text, without special ones

    def __len__(self) -> int:
        return len(self.tokens)


def vocabulary_of(tokenizer: Tokenizer, info: ModelInfo) -> Vocabulary:
    """The vocabulary of a model with this tokenizer. 100,000 tokens take a tenth of a second or two."""
    known = min(tokenizer.vocab_size, info.vocab_size)
    tokens = [tokenizer.token_bytes(index) for index in range(known)]
    tokens += [b""] * (info.vocab_size - known)
    return Vocabulary(
        tokens=tuple(tokens),
        special_ids=frozenset(index for index in tokenizer.special_ids if index < info.vocab_size),
        eos_ids=info.eos_token_ids,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
    )
