"""How a grammar meets a request."""

from collections.abc import Set
from dataclasses import replace

from ..request import Request
from .grammar import FREE, Grammar, Mask, Matcher
from .masks import mask_of
from .thinking import ThinkingGrammar


def constrain(request: Request, grammar: Grammar) -> None:
    """Give a new request its matcher.

    A grammar that holds all of the output to something decides where it ends. `min_new_tokens` and
    `ignore_eos` ask for more than the least: they are honoured here, as long as the grammar lets the text go
    on, and mean nothing to the engine.
    """
    params, spec = request.params, request.params.grammar
    if isinstance(grammar, ThinkingGrammar) and spec is not None and spec.thinking is not None:
        request.matcher = grammar.matcher(spec.thinking.budget)
    else:
        request.matcher = grammar.matcher()
    if (params.min_new_tokens or params.ignore_eos) and (spec is None or spec.kind not in FREE):
        ends = request.eos_token_ids.union(params.stop_token_ids)
        least = None if params.ignore_eos else params.min_new_tokens
        request.matcher = _LongerMatcher(request.matcher, ends, least)
        request.params = replace(params, min_new_tokens=0, ignore_eos=False)


class _LongerMatcher:
    """Does not let the output end before `least` tokens, None for never, while anything else may come."""

    def __init__(self, matcher: Matcher, ends: Set[int], least: int | None) -> None:
        self._matcher = matcher
        self._ends = ends
        self._left = least

    def fill_mask(self, mask: Mask) -> None:
        self._matcher.fill_mask(mask)
        if self._left is None or self._left > 0:
            longer = mask & ~mask_of(self._ends, 32 * mask.size)
            if longer.any():
                mask[:] = longer

    def accept(self, token_id: int) -> None:
        self._matcher.accept(token_id)
        if self._left is not None:
            self._left -= 1

    def forced(self) -> list[int]:
        return self._matcher.forced()
