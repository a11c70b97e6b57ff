"""What constrained decoding is to the rest of the engine: a specification, and two protocols that know
no library."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint32]  # [ceil(vocab / 32)]: bit `i % 32` of word `i // 32` allows token i

GrammarKind = Literal[
    "json_object", "json_schema", "regex", "ebnf", "choices", "structural_tag", "text", "calls"
]
FREE: tuple[GrammarKind, ...] = ("text", "calls")  # no library's; an output may end anywhere, but in a call


@dataclass(frozen=True, slots=True)
class Thinking:
    """What an output thinks before its answer; no grammar bounds it.

    It begins with the text `begin`, if the output does; "": the prompt has begun it. It is over after the
    text `end`, which `then` has to follow. Once there are `budget` tokens of it, both have to come; None is
    no bound.
    """

    begin: str
    end: str
    then: str = ""
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an output must match, as the user gave it. Equal ones share one compiled grammar.

    `text` is a JSON schema, a regular expression, an EBNF grammar, a JSON list of strings, a structural
    tag, or how calls in a text are written (see calls.py); it is empty for json_object, and for text, which
    is any. What it is of comes after `thinking`, if there may be some.
    """

    kind: GrammarKind
    text: str = ""
    thinking: Thinking | None = None


class Grammar(Protocol):
    """A compiled grammar: immutable, shared by all requests of one specification."""

    def matcher(self) -> "Matcher":
        """A fresh start of one output."""
        ...


class Matcher(Protocol):
    """Where one output stands in its grammar. Used by one thread. Any method may raise GrammarError,
    which ends this output's request and no other."""

    def fill_mask(self, mask: Mask) -> None:
        """Write which tokens may come next, those that end the output among them where it may end."""
        ...

    def accept(self, token_id: int) -> None:
        """Take the next token, one of those that may come."""
        ...

    def forced(self) -> list[int]:
        """The tokens that have to come next, whatever the model would say; none where there is a choice.

        While it is not empty, `fill_mask` allows its first token alone: so the output is the same whether
        the tokens are taken at once or one by one.
        """
        ...
