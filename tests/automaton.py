"""A grammar that can be read off the page: a finite automaton over token ids, given as a table."""

import random
from collections.abc import Sequence

from radixmesh.engine.batch import U32
from radixmesh.engine.errors import GrammarError

MAX_FORCED = 50


class Automaton:
    """`table[state]` is the next state by token; the token `eos`, where a state has it, leads nowhere."""

    def __init__(self, table: Sequence[dict[int, int]], eos: int) -> None:
        self.table, self.eos = table, eos

    def matcher(self) -> "AutomatonMatcher":
        return AutomatonMatcher(self)

    def allowed(self, output: Sequence[int]) -> set[int]:
        """What may follow an output."""
        state = 0
        for token in output:
            state = self.table[state][token]
        return set(self.table[state])

    def accepts(self, output: Sequence[int]) -> bool:
        """Whether an output is a beginning of what the automaton generates."""
        return all(token in self.allowed(output[:at]) for at, token in enumerate(output))


class AutomatonMatcher:
    """Where an output stands. `fails` names the method that raises, `after` how many tokens."""

    def __init__(self, automaton: Automaton, fails: str = "", after: int = 0) -> None:
        self.automaton, self.state = automaton, 0
        self.fails, self.left = fails, after

    def fill_mask(self, mask: U32) -> None:
        self._may_fail("fill_mask")
        mask[:] = 0
        if self.fails == "nothing allowed" and not self.left:
            return
        for token in self.automaton.table[self.state]:
            mask[token // 32] |= 1 << token % 32

    def accept(self, token_id: int) -> None:
        self._may_fail("accept")
        self.left -= 1
        options = self.automaton.table[self.state]
        if token_id not in options:
            raise GrammarError(f"{token_id} is none of {sorted(options)}")
        self.state = options[token_id]

    def forced(self) -> list[int]:
        self._may_fail("forced")
        tokens, state, table = list[int](), self.state, self.automaton.table
        while len(table[state]) == 1 and len(tokens) < MAX_FORCED:
            tokens += table[state]
            if tokens[-1] == self.automaton.eos:
                break
            state = table[state][tokens[-1]]
        return tokens

    def _may_fail(self, method: str) -> None:
        if self.fails == method and self.left <= 0:
            raise RuntimeError(f"{method} went wrong")


def random_automaton(rng: random.Random, vocab: int, eos: int, *, states: int = 8) -> Automaton:
    """Every state goes on or ends; many have one way only, and some may go on for ever."""
    table: list[dict[int, int]] = []
    for _ in range(states):
        ways = rng.choice([1, 1, 1, 2, 5])
        tokens = {rng.randrange(vocab) for _ in range(ways)} - {eos} or {(eos + 1) % vocab}
        options = {token: rng.randrange(states) for token in sorted(tokens)}
        end = rng.random()
        if end < 0.1:
            options = {}
        if end < 0.3:
            options[eos] = 0
        table.append(options)
    return Automaton(table, eos)


def chain(tokens: Sequence[int], eos: int, *, free_at: Sequence[int] = (), ways: int = 10) -> Automaton:
    """Generates `tokens`, and ends. Those at `free_at` may be any of the `ways` ids from it upwards."""
    table = [
        {token + way: at + 1 for way in range(ways if at in free_at else 1)}
        for at, token in enumerate(tokens)
    ]
    return Automaton([*table, {eos: 0}], eos)
