"""The one table of compiled shapes: the padding of a step and the start-up compilation both read it."""

from bisect import bisect_left
from enum import IntEnum
from typing import NamedTuple

from ...engine.batch import SamplingVariant

SMALLEST = 4  # tokens, but for a single one: on a CPU two rows take as long as four, and one half of it


class Part(IntEnum):
    """How much of a step is compiled in one: all of it, or the halves of a step with masks."""

    WHOLE = 0
    FORWARD = 1  # embedding to logits
    SAMPLE = 2  # logits, under masks, to token slots


class Shape(NamedTuple):
    """What a compiled step is made for."""

    tokens: int  # its bucket; of SAMPLE, the wanted positions
    full: bool  # whether it can reshape logits and return logprobs; greedy or not is decided as it runs
    part: Part = Part.WHOLE


def compiled_shapes(max_step_tokens: int, max_rows: int) -> list[Shape]:
    """Every shape that a step can have, the likeliest first. Rows sample one token each at most."""
    whole = [Shape(size, full) for full in (False, True) for size in _buckets(max_step_tokens, full)]
    forward = [Shape(size, False, Part.FORWARD) for size in _buckets(max_step_tokens, False)]
    samplers = dict.fromkeys(sampler_of(shape, max_rows) for shape in forward)
    return [*whole, *forward, *samplers]


def shape_of(max_step_tokens: int, tokens: int, variant: SamplingVariant, part: Part = Part.WHOLE) -> Shape:
    """The smallest shape that serves so many tokens and this variant."""
    full = variant == SamplingVariant.FULL and part == Part.WHOLE
    buckets = _buckets(max_step_tokens, full)
    return Shape(buckets[bisect_left(buckets, tokens)], full, part)


def sampler_of(forward: Shape, max_rows: int) -> Shape:
    """The second half that goes with a first: one serves every variant."""
    return Shape(min(forward.tokens, max_rows), True, Part.SAMPLE)


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
