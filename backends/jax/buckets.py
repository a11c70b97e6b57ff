"""The one table of compiled shapes: the padding of a step and the start-up compilation both read it."""

from bisect import bisect_left

from ...engine.batch import SamplingVariant

SMALLEST = 4  # tokens; a matrix-vector product in XLA's CPU loop took 28 to 84 ms a step, four rows 32 to 35


def token_buckets(max_step_tokens: int) -> tuple[int, ...]:
    """Step sizes in tokens: powers of two from SMALLEST, the last one exactly `max_step_tokens`."""
    sizes = []
    size = SMALLEST
    while size < max_step_tokens:
        sizes.append(size)
        size *= 2
    return (*sizes, max_step_tokens)


def bucket_of(buckets: tuple[int, ...], tokens: int) -> int:
    """The smallest bucket that holds so many tokens."""
    return buckets[bisect_left(buckets, tokens)]


def compiled_shapes(max_step_tokens: int) -> list[tuple[int, SamplingVariant]]:
    """Every (token bucket, sampling variant) that a step can have, the likeliest first."""
    return [(size, variant) for variant in SamplingVariant for size in token_buckets(max_step_tokens)]
