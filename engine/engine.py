"""`Engine`: the loop that keeps host and device busy at the same time."""

import logging
from dataclasses import dataclass

from .batch import ScheduleBatch
from .config import EngineConfig
from .errors import EngineDeadError
from .outputs import TokenOutput
from .request import Request
from .runner import ModelInfo, ModelRunner, PendingTokens
from .scheduler import Scheduler
from .stats import EngineStats

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 3


@dataclass(slots=True)
class _Step:
    """A step that the device has, or is said to have."""

    batch: ScheduleBatch
    pending: PendingTokens


class Engine:
    """A scheduler and a runner. Not thread-safe: one thread adds, aborts and steps.

    A step that fails on the runner ends its requests with FinishReason.ERROR; the engine goes on, until
    MAX_CONSECUTIVE_FAILURES in a row raise EngineDeadError. `strict` (for tests) raises IntegrityError
    where production logs, counts and repairs.
    """

    def __init__(
        self, config: EngineConfig, info: ModelInfo, runner: ModelRunner, *, strict: bool = False
    ) -> None:
        self.config, self.info, self.runner = config, info, runner
        self.scheduler = Scheduler(config, info, runner.capacity, strict=strict)
        self._strict = strict
        self._in_flight: _Step | None = None
        self._failures = 0  # in a row

    def add_request(self, request: Request) -> None:
        """Queue a request. Raises RequestError if it can never be served, QueueFullError if too many wait."""
        self.scheduler.add(request)

    def abort(self, request_id: str) -> bool:
        """End a request, or all children of a parent id. Its pages are free at once; the next `step` returns
        its last output, with FinishReason.ABORT. False if there is no such request."""
        return self.scheduler.abort(request_id)

    def step(self) -> list[TokenOutput]:
        """One turn: launch the next step, then take in the one before, which ran meanwhile."""
        launched = self._launch(self._schedule())
        if self.config.disable_overlap_schedule:
            due, self._in_flight = launched, None
        else:
            due, self._in_flight = self._in_flight, launched
        outputs = self._collect(due) if due else []
        outputs += self.scheduler.take_outputs()
        if not self.has_work:
            self._check_idle()
        return outputs

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self.scheduler.requests or self.scheduler.outputs or self._in_flight)

    def flush_cache(self) -> bool:
        """Empty the radix cache. False, and nothing is done, while requests run or wait."""
        if self.has_work:
            return False
        self.scheduler.pool.free(self.scheduler.cache.flush())
        return True

    def stats(self) -> EngineStats:
        """A snapshot of gauges and counters."""
        return self.scheduler.stats()

    def _schedule(self) -> ScheduleBatch | None:
        try:
            return self.scheduler.schedule()
        except Exception as error:
            if self._strict:
                raise
            self._start_over(error)
            return None

    def _launch(self, batch: ScheduleBatch | None) -> _Step | None:
        if batch is None:
            return None
        try:
            return _Step(batch, self.runner.forward(batch))
        except Exception as error:
            self._fail(error, batch)
            return None

    def _collect(self, step: _Step) -> list[TokenOutput]:
        try:
            tokens = step.pending.result()
        except Exception as error:
            # the step after it was launched already and builds on what this one should have written
            self._fail(error, step.batch, *([self._in_flight.batch] if self._in_flight else []))
            return []
        self._failures = 0
        try:
            return self.scheduler.process(step.batch, tokens)
        except Exception as error:
            if self._strict:
                raise
            self._start_over(error)
            return []

    def _start_over(self, error: Exception) -> None:
        logger.error("the scheduler failed; open requests end, pages are taken back", exc_info=error)
        self.scheduler.start_over(f"the scheduler failed: {error}")

    def _fail(self, error: Exception, *batches: ScheduleBatch) -> None:
        self._failures += 1
        self.scheduler.counters.step_failures += 1
        logger.error("step %d failed: %r", batches[0].step, error, exc_info=error)
        requests = [request for batch in batches for request in batch.rows]
        self.scheduler.fail(requests, f"the step failed on the device: {error}")
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            raise EngineDeadError(
                f"{self._failures} steps in a row failed, the last with: {error}"
            ) from error

    def _check_idle(self) -> None:
        """With nothing running every page is free or cached; what is not was lost, and is taken back."""
        problem = self.scheduler.find_lost_pages()
        if problem:
            logger.error("%s; the cache is dropped and every page is free again", problem)
            self.scheduler.start_over(problem)
