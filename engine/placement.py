"""Which data parallel group serves a request: each has a scheduler, a cache and pages of its own."""

from collections.abc import Sequence

from .request import Request
from .scheduler import Scheduler

REQUEST_TOKENS = 256  # what each request that a group already has counts for, in tokens to compute


def place(request: Request, schedulers: Sequence[Scheduler]) -> Scheduler:
    """The group that has the least to compute if it takes `request`: what it has cached of the prompt
    speaks for it, the requests that it has against it, so that a prefix which all share draws them
    together only until others have less to do.

    Raises RequestError if the request can never be served.
    """
    if len(schedulers) == 1:
        return schedulers[0]
    for each in schedulers:
        if request.id in each.requests:
            return each  # which will refuse a second one of that name
    schedulers[0].limits.check(request)
    accepting = [each for each in schedulers if not each.is_full] or schedulers
    return min(accepting, key=lambda each: _tokens_to_compute(request, each))


def _tokens_to_compute(request: Request, scheduler: Scheduler) -> int:
    _, num_cached = scheduler.cache.peek(request.prompt_ids, request.extra_key)
    return request.num_prompt_tokens - num_cached + REQUEST_TOKENS * len(scheduler.requests)
