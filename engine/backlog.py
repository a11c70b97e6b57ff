"""`Backlog`: how long a new request would wait, and who has waited too long.

The wait is what the queue has to do over what was done a second while requests waited: prompt tokens, of
which cached ones take no time and so raise the rate, and for each request as many new tokens as requests
had of late. It is a forecast, and it is of a queue in order of arrival: `overdue` makes the bound hold.
"""

import math
import time

import numpy as np
from numpy.typing import NDArray

from .config import EngineConfig
from .errors import QueueFullError
from .outputs import TokenOutput
from .policy import WaitingQueue
from .request import FinishReason, Request
from .stats import EngineStats

MEMORY = 10.0  # seconds after which a measurement counts for a third
FIRST_SECONDS = 0.5  # measured before there is a forecast
NEW_TOKENS = 256  # of a request, until some have ended


class Backlog:
    """The waiting requests of one scheduler, seen as work."""

    def __init__(self, config: EngineConfig, waiting: WaitingQueue) -> None:
        self._max_requests, self._max_wait = config.max_queued_requests, config.max_queue_wait
        self._waiting = waiting
        # what was done while requests waited, older parts counting less and less
        self._done = np.zeros(4)  # seconds, tokens, new tokens, requests that ended
        self._last: NDArray[np.float64] | None = None  # the look before, if requests waited then

    def measure(self, counters: EngineStats) -> None:
        """Look at the engine's counters; called once a step, when it has admitted whom it could."""
        tokens = counters.scheduled_tokens + counters.cached_tokens
        ended = counters.finished + counters.aborted + counters.errors
        now = np.array([time.monotonic(), tokens, counters.generation_tokens, ended])
        if self._last is not None:
            new = now - self._last
            self._done = self._done * math.exp(-new[0] / MEMORY) + new
        self._last = now if len(self._waiting) else None

    def wait(self, free_rows: int) -> float:
        """Seconds that a new request is expected to wait; 0 as long as nothing was measured."""
        seconds, tokens, new_tokens, ended = self._done.tolist()
        count = len(self._waiting)
        if count <= free_rows or seconds < FIRST_SECONDS or not tokens:
            return 0.0
        per_request = new_tokens / ended if ended >= 1 else NEW_TOKENS
        work = self._waiting.num_prompt_tokens + count * per_request
        return work * (1 - free_rows / count) * seconds / tokens

    def refusal(self, free_rows: int) -> str | None:
        """Why no request is taken now, in one sentence; None when one is."""
        count = len(self._waiting)
        if count >= self._max_requests:
            return (
                f"{count} requests are waiting and max_queued_requests is {self._max_requests};"
                " try again later"
            )
        wait = self.wait(free_rows)
        if self._max_wait is not None and wait > self._max_wait:
            return (
                f"a new request would wait for {wait:.1f} s and max_queue_wait is {self._max_wait:g};"
                " try again later"
            )
        return None

    def check(self, free_rows: int) -> None:
        """Raise QueueFullError if no request is taken now."""
        if refusal := self.refusal(free_rows):
            raise QueueFullError(refusal)

    def overdue(self) -> list[Request]:
        """Those who waited for `max_queue_wait` and never ran."""
        if self._max_wait is None:
            return []
        latest = time.monotonic() - self._max_wait
        found = []
        for request in self._waiting:  # in order of arrival
            if not request.num_preemptions:
                if request.arrival_time > latest:
                    break
                found.append(request)
        return found

    def farewell(self, request: Request) -> TokenOutput:
        """What an overdue request hears."""
        return TokenOutput(
            request_id=request.id,
            token_ids=[],
            finish_reason=FinishReason.ABORT,
            error=f"the request waited for max_queue_wait, {self._max_wait:g} s; try again later",
            refused=True,
        )
