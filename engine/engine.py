"""`Engine`: the loop that keeps host and device busy at the same time."""

import logging
from dataclasses import dataclass

from .batch import ScheduleBatch
from .config import EngineConfig
from .errors import EngineDeadError
from .outputs import TokenOutput
from .placement import place
from .request import Request
from .runner import ModelInfo, ModelRunner, PendingTokens
from .scheduler import Scheduler
from .snapshot import GroupView, view_group
from .stats import EngineStats, total

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 3


@dataclass(slots=True)
class _Step:
    """A step that the device has, or is said to have."""

    batches: list[ScheduleBatch | None]  # of each scheduler
    pending: PendingTokens


class Engine:
    """A runner, and a scheduler for each of its data parallel groups. Not thread-safe: one thread adds,
    aborts and steps.

    A step that fails on the runner ends its requests with FinishReason.ERROR; the engine goes on, until
    MAX_CONSECUTIVE_FAILURES in a row raise EngineDeadError, or the runner itself does. `strict` (for tests)
    raises IntegrityError where production logs, counts and repairs.
    """

    def __init__(
        self, config: EngineConfig, info: ModelInfo, runner: ModelRunner, *, strict: bool = False
    ) -> None:
        self.config, self.info, self.runner = config, info, runner
        self.schedulers = [
            Scheduler(config, info, runner.capacity, strict=strict) for _ in range(runner.capacity.num_groups)
        ]
        self._strict = strict
        self._in_flight: _Step | None = None
        self._failures = 0  # in a row

    def add_request(self, request: Request) -> None:
        """Queue a request. Raises RequestError if it can never be served, QueueFullError if too many wait."""
        place(request, self.schedulers).add(request)

    def abort(self, request_id: str) -> bool:
        """End a request, or all children of a parent id. Its pages are free at once; the next `step` returns
        its last output, with FinishReason.ABORT. False if there is no such request."""
        return any([each.abort(request_id) for each in self.schedulers])  # children may be in all of them

    def step(self) -> list[TokenOutput]:
        """One turn: launch the next step, then take in the one before, which ran meanwhile.

        What grammars allow in the next step follows from the one before: it is found out while the device
        is on its way to the logits.
        """
        launched = self._launch([self._schedule(each) for each in self.schedulers])
        if self.config.disable_overlap_schedule:
            due, self._in_flight = self._constrain(launched), None
        else:
            due, self._in_flight = self._in_flight, launched
        outputs = self._collect(due) if due else []
        self._in_flight = self._constrain(self._in_flight)
        for scheduler in self.schedulers:
            outputs += scheduler.take_outputs()
        if not self.has_work:
            self._check_idle()
        return outputs

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._in_flight) or any(each.requests or each.outputs for each in self.schedulers)

    @property
    def num_waiting(self) -> int:
        """Requests in the queues."""
        return sum(len(each.waiting) for each in self.schedulers)

    @property
    def max_waiting(self) -> int:
        """As many may wait, all groups together."""
        return self.config.max_queued_requests * len(self.schedulers)

    def flush_cache(self) -> bool:
        """Empty the radix cache. False, and nothing is done, while requests run or wait."""
        if self.has_work:
            return False
        for scheduler in self.schedulers:
            scheduler.pool.free(scheduler.cache.flush())
        return True

    def stats(self) -> EngineStats:
        """A snapshot of gauges and counters, all groups together."""
        return total([each.stats() for each in self.schedulers])

    def view(self) -> list[GroupView]:
        """What each group looks like between two steps; takes less than a millisecond each."""
        return [view_group(each) for each in self.schedulers]

    def _schedule(self, scheduler: Scheduler) -> ScheduleBatch | None:
        try:
            return scheduler.schedule()
        except Exception as error:
            if self._strict:
                raise
            _start_over(scheduler, error)
            return None

    def _launch(self, batches: list[ScheduleBatch | None]) -> _Step | None:
        if not any(batches):
            return None
        try:
            return _Step(batches, self.runner.forward(batches))
        except Exception as error:
            self._fail(error, batches)
            return None

    def _constrain(self, step: _Step | None) -> _Step | None:
        """Give a launched step its masks, if it needs any. None if it fails, or if there is none."""
        if step is None or not any(batch is not None and len(batch.constrained) for batch in step.batches):
            return step
        groups = zip(self.schedulers, step.batches, strict=True)
        try:
            masks = [None if batch is None else scheduler.masks(batch) for scheduler, batch in groups]
            step.pending.constrain(masks)
        except Exception as error:
            self._fail(error, step.batches)
            return None
        return step

    def _collect(self, step: _Step) -> list[TokenOutput]:
        try:
            results = step.pending.result()
        except Exception as error:
            # the step after it was launched already and builds on what this one should have written
            self._fail(error, step.batches, *([self._in_flight.batches] if self._in_flight else []))
            return []
        self._failures = 0
        outputs: list[TokenOutput] = []
        for scheduler, batch, tokens in zip(self.schedulers, step.batches, results, strict=True):
            if batch is None:
                continue
            try:
                outputs += scheduler.process(batch, tokens)
            except Exception as error:
                if self._strict:
                    raise
                _start_over(scheduler, error)
        return outputs

    def _fail(self, error: Exception, *steps: list[ScheduleBatch | None]) -> None:
        """End the requests of steps that did not happen. A group without any forgets its cache all the same:
        what the device holds now nobody knows. Where the device is lost everything ends."""
        if isinstance(error, EngineDeadError):
            raise error
        self._failures += 1
        self.schedulers[0].counters.step_failures += 1
        first = next(batch for batch in steps[0] if batch is not None)
        logger.error("step %d failed: %r", first.step, error, exc_info=error)
        for scheduler, batches in zip(self.schedulers, zip(*steps, strict=True), strict=True):
            requests = [request for batch in batches if batch is not None for request in batch.rows]
            scheduler.fail(requests, f"the step failed on the device: {error}")
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            raise EngineDeadError(
                f"{self._failures} steps in a row failed, the last with: {error}"
            ) from error

    def _check_idle(self) -> None:
        """With nothing running every page is free or cached; what is not was lost, and is taken back."""
        for scheduler in self.schedulers:
            problem = scheduler.find_lost_pages()
            if problem:
                logger.error("%s; the cache is dropped and every page is free again", problem)
                scheduler.start_over(problem)


def _start_over(scheduler: Scheduler, error: Exception) -> None:
    logger.error("the scheduler failed; open requests end, pages are taken back", exc_info=error)
    scheduler.start_over(f"the scheduler failed: {error}")
