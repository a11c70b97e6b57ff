"""`EngineStats`: gauges and counters of the engine, plain numbers that cross a process."""

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(slots=True)
class EngineStats:
    """A snapshot. Pages in use, cached and free add up to `num_pages`."""

    # gauges
    num_running: int = 0
    num_waiting: int = 0
    page_size: int = 0
    num_pages: int = 0
    free_pages: int = 0
    cached_pages: int = 0  # in the radix tree, locked ones included
    evictable_pages: int = 0  # in the radix tree and used by nobody
    used_pages: int = 0  # of running requests, not in the tree
    queue_wait: float = 0.0  # seconds that a new request is expected to wait
    token_usage: float = 0.0  # share of the pages that running requests hold, 0 to 1

    # counters since the start
    steps: int = 0
    scheduled_tokens: int = 0  # in all steps: prefilled and decoded
    prompt_tokens: int = 0  # of requests when first admitted
    cached_tokens: int = 0  # of these, found in the cache
    generation_tokens: int = 0
    constrained_tokens: int = 0  # of these, sampled under a mask
    forced_tokens: int = 0  # of these, never sampled: the grammar left no choice
    mask_seconds: float = 0.0  # of the host, to find out what grammars allow
    preemptions: int = 0
    finished: int = 0  # stopped, or reached their length
    aborted: int = 0
    errors: int = 0  # requests that ended with FinishReason.ERROR
    step_failures: int = 0
    integrity_violations: int = 0  # found and repaired


def total(groups: Sequence[EngineStats]) -> EngineStats:
    """The figures of data parallel groups as one engine's. Pools are alike, and steps taken together."""
    if len(groups) == 1:
        return groups[0]
    values = {field.name: [getattr(each, field.name) for each in groups] for field in fields(EngineStats)}
    summed = EngineStats(**{name: sum(each) for name, each in values.items()})
    summed.page_size, summed.steps = groups[0].page_size, max(values["steps"])
    summed.token_usage /= len(groups)
    summed.queue_wait /= len(groups)
    return summed
