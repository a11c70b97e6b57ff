"""What grammars allow in a step, and how their failures stay with their requests."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from ..batch import U32, ScheduleBatch
from ..errors import GrammarError
from ..request import Request

T = TypeVar("T")


def step_masks(batch: ScheduleBatch, vocab_size: int) -> tuple[U32, int, list[tuple[Request, str]]]:
    """Masks of the batch's constrained rows, uint32 [C, ceil(vocab / 32)]; how many of them are a grammar's;
    and the requests whose matcher failed, each with the reason.

    Rows may sample anything whose token nobody will look at: those of requests that have ended, and of
    ones that know it already.
    """
    failed: list[tuple[Request, str]] = []
    masks = np.zeros((len(batch.constrained), -(-vocab_size // 32)), np.uint32)
    bounded = 0
    for mask, index in zip(masks, batch.constrained.tolist(), strict=True):
        request = batch.sampled[index]
        if not request.finished and not request.num_foreseen:
            try:
                _fill(request, mask)
                bounded += 1
                continue
            except GrammarError as error:
                failed.append((request, str(error)))
        mask[:] = 0xFFFFFFFF
    return masks, bounded, failed


def accept(request: Request, token_id: int) -> None:
    """Tell the request's matcher what came. Raises GrammarError."""
    assert request.matcher is not None
    matcher = request.matcher
    _guard(lambda: matcher.accept(token_id))


def forced(request: Request) -> list[int]:
    """Tokens that have to come next. Raises GrammarError."""
    assert request.matcher is not None
    return _guard(request.matcher.forced)


def _fill(request: Request, mask: U32) -> None:
    assert request.matcher is not None
    matcher = request.matcher
    _guard(lambda: matcher.fill_mask(mask))
    if not mask.any():
        raise GrammarError("the grammar allows no token here, not even the end of the output")


def _guard(call: Callable[[], T]) -> T:
    """Whatever a library raises in the middle of an output ends that output's request alone."""
    try:
        return call()
    except GrammarError:
        raise
    except Exception as error:
        raise GrammarError(f"the grammar failed: {error!r}") from error
