"""The one table of compiled shapes: the padding of a step and the start-up compilation both read it."""

from bisect import bisect_left
from typing import NamedTuple

from ...engine.batch import SamplingVariant

SMALLEST = 4  # tokens, but for a single one: on a CPU two rows take as long as four, and one half of it


class Shape(NamedTuple):
    """What a compiled step is made for."""

    tokens: int  # its bucket
    full: bool  # whether it can reshape logits and return logprobs; greedy or not is decided as it runs


def compiled_shapes(max_step_tokens: int) -> list[Shape]:
    """Every shape that a step can have, the likeliest first."""
    return [Shape(size, full) for full in (False, True) for size in _buckets(max_step_tokens, full)]


def shape_of(max_step_tokens: int, tokens: int, variant: SamplingVariant) -> Shape:
    """The smallest shape that serves so many tokens and this variant."""
    full = variant == SamplingVariant.FULL
    buckets = _buckets(max_step_tokens, full)
    return Shape(buckets[bisect_left(buckets, tokens)], full)


def _buckets(max_step_tokens: int, full: bool) -> list[int]:
    """Step sizes in tokens: powers of two down from `max_step_tokens` to SMALLEST, of the rarer full shapes
    every second one, since they take longest to compile; and 1, for a request that runs alone."""
    step = 4 if full else 2
    sizes = [max_step_tokens]
    size = (1 << (max_step_tokens - 1).bit_length()) // step
    while size >= SMALLEST:
        sizes.append(size)
        size //= step
    return [*([1] if max_step_tokens > 1 else []), *sizes[::-1]]
