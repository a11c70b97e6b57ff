"""What constrained decoding is to the rest of the engine: a specification, and two protocols that know
no library."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint32]  # [ceil(vocab / 32)]: bit `i % 32` of word `i // 32` allows token i

GrammarKind = Literal["json_object", "json_schema", "regex", "ebnf", "choices", "structural_tag"]


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an output must match, as the user gave it. Equal ones share one compiled grammar.

    `text` is a JSON schema, a regular expression, an EBNF grammar, a JSON list of strings or a structural
    tag; it is empty for json_object.
    """

    kind: GrammarKind
    text: str = ""


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
