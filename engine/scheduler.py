"""`Scheduler`: decides what each step computes, and takes in what it sampled.

One token budget per step: decode rows ride first, chunks of running prefills fill the rest, then waiting
requests are admitted. `schedule` for step n + 1 comes before `process` of step n, so a request may have
one token that only the device knows.

Steps take effect on the device in the order of scheduling. So pages may enter the tree when the step that
writes them has been planned, and freed pages may be given away while a step in flight still writes them.

Who comes before whom when pages are short is a request's *claim*: order of arrival (under the priority
policy, priority first). A request never takes pages from one with a better claim, and the best claim
of all can take from everybody: so it always moves on, and with it, in the end, everyone.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import numpy as np

from .backlog import Backlog
from .batch import I32, U32, SamplingVariant, ScheduleBatch, StepTokens
from .batch_builder import Chunk, SamplingTable, build_batch
from .config import EngineConfig
from .errors import GrammarError, RequestError
from .grammar.step_masks import accept, forced, step_masks
from .limits import Limits
from .outputs import TokenOutput
from .page_pool import PagePool
from .policy import WaitingQueue, claim
from .pooling import take_pooled
from .prompt_logprobs import num_reusable, take_prompt_logprobs
from .radix_cache import RadixCache
from .request import FinishReason, Request, RequestStatus
from .request_pages import RequestPages, add_pages
from .runner import ModelInfo, RunnerCapacity
from .shared_prefixes import SharedPrefixes
from .stats import EngineStats
from .step_plan import StepPlan

logger = logging.getLogger(__name__)

# steps that a forced run has to save: its chunk needs a larger bucket than decode rows, and on a GPU no graph
MIN_JUMP = 3


class Scheduler:
    """Waiting and running requests, their pages and slots. Knows no framework and no device."""

    def __init__(
        self, config: EngineConfig, info: ModelInfo, capacity: RunnerCapacity, *, strict: bool = False
    ) -> None:
        self.config, self.capacity = config, capacity
        self.page_size = capacity.page_size
        self.limits = Limits.of(config, info, capacity)
        self.pool = PagePool(capacity.num_pages, strict=strict)
        self.cache = RadixCache(
            self.page_size,
            eviction_policy=config.radix_eviction_policy,
            enabled=not config.disable_radix_cache,
        )
        self.token_budget = min(
            config.chunked_prefill_size or capacity.max_step_tokens, capacity.max_step_tokens
        )
        self._pages = RequestPages(self.pool, self.cache, self.page_size)
        # never more decode rows than the budget: while one request prefills, a token is left for it
        self.max_rows = min(
            config.max_running_requests or capacity.max_running_requests,
            capacity.max_running_requests,
            self.token_budget,
        )
        self.waiting = WaitingQueue(config.schedule_policy, self.cache, config.random_seed)
        self.backlog = Backlog(config, self.waiting)
        self.requests: dict[str, Request] = {}  # waiting and running, by id
        self.prefilling: dict[int, Request] = {}  # running, by slot, in order of admission
        self.decoding: dict[int, Request] = {}
        self.outputs: list[TokenOutput] = []  # ends that no step brought: aborts and errors
        self.counters = EngineStats(page_size=self.page_size, num_pages=capacity.num_pages)
        self._table = SamplingTable(capacity.max_running_requests)
        self._shared_prefixes = SharedPrefixes()
        self._free_slots = list(reversed(range(self.max_rows)))
        self._by_priority = config.schedule_policy == "priority"

    # ---- requests come and go ----

    def add(self, request: Request) -> None:
        """Queue a new request. Raises RequestError if it can never be served, QueueFullError."""
        if request.id in self.requests:
            text = f"request_id {request.id!r} is in use; accepted is one of your own"
            raise RequestError(text, "request_id")
        self.backlog.check(len(self._free_slots))
        self.limits.check(request)
        self.requests[request.id] = request
        self.waiting.add(request)

    def abort(self, request_id: str) -> bool:
        """End a request, or all children of a parent, now; their pages are free at once."""
        found = [self.requests[request_id]] if request_id in self.requests else []
        if not found:
            found = [each for each in self.requests.values() if each.parent_id == request_id]
        for request in found:
            self._finish(request, FinishReason.ABORT)
            self.outputs.append(TokenOutput.of(request, []))
        return bool(found)

    def fail(self, requests: Iterable[Request], error: str) -> None:
        """End `requests` with an error: the step that was to compute them did not happen.

        What the step was to write is in the tree already, so every prefix that nobody else uses is dropped.
        """
        for request in requests:
            if not request.finished:
                self._end_with_error(request, error)
        self.pool.free(self.cache.flush())

    def start_over(self, error: str) -> None:
        """Repair after a bug: end every request with an error, forget the cache, take all pages back."""
        self.counters.integrity_violations += 1
        for request in list(self.requests.values()):
            request.status, request.finish_reason = RequestStatus.FINISHED, FinishReason.ERROR
            self.outputs.append(TokenOutput.of(request, [], error))
        self.counters.errors += len(self.requests)
        for queue in (self.requests, self.prefilling, self.decoding):
            queue.clear()
        self.waiting.clear()
        self.cache.reset()
        self.pool.repair(())
        self._free_slots = list(reversed(range(self.max_rows)))

    def find_lost_pages(self) -> str | None:
        """What is wrong with `free + cached + in use = all`, or None. Cheap: counts only."""
        free, cached, used = self.pool.num_free, self.cache.cached_pages, self._used_pages
        if free + cached + used != self.pool.num_pages:
            return f"{free} free, {cached} cached and {used} used pages are not {self.pool.num_pages}"
        if not self.num_running and self.cache.evictable_pages != cached:
            return f"{cached - self.cache.evictable_pages} cached pages are locked by nobody who runs"
        return None

    def stats(self) -> EngineStats:
        """A snapshot of gauges and counters."""
        return replace(
            self.counters,
            num_running=self.num_running,
            num_waiting=len(self.waiting),
            free_pages=self.pool.num_free,
            cached_pages=self.cache.cached_pages,
            evictable_pages=self.cache.evictable_pages,
            used_pages=self._used_pages,
            queue_wait=self.backlog.wait(len(self._free_slots)),
            token_usage=1 - self._pages.available / self.pool.num_pages,
            integrity_violations=self.counters.integrity_violations + self.pool.num_violations,
        )

    def take_outputs(self) -> list[TokenOutput]:
        """Ends of requests since the last call that did not come from `process`."""
        outputs, self.outputs = self.outputs, []
        return outputs

    @property
    def is_full(self) -> bool:
        return self.backlog.refusal(len(self._free_slots)) is not None

    @property
    def num_running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    # ---- one step ----

    def schedule(self) -> ScheduleBatch | None:
        """Plan the next step, or None when nothing can be computed before a step in flight is processed."""
        for request in self.backlog.overdue():
            self._finish(request, FinishReason.ABORT)
            self.outputs.append(self.backlog.farewell(request))
        capacity = self.capacity
        plan = StepPlan(self.token_budget, capacity.max_page_indices, capacity.max_running_requests)
        preemptions = self.counters.preemptions
        if self.prefilling and not self._pages.available:
            self._feed_best_claim()
        self._plan_decode(plan)
        for request in list(self.prefilling.values()):
            plan.stalled |= not self._plan_chunk(request, plan)
        # after a preemption nobody: the pages are meant for others, and the host has yet to see the newest
        # token of the request that was preempted
        if self.counters.preemptions == preemptions and not plan.stalled:
            self._admit(plan)
        self.backlog.measure(self.counters)
        if not plan.decode and not plan.chunks:
            return None
        batch = build_batch(
            self.counters.steps, plan.decode, plan.chunks, self._table, self.page_size, plan.shared
        )
        self._advance(plan)
        self.counters.steps += 1
        self.counters.scheduled_tokens += batch.num_tokens
        return batch

    def _plan_decode(self, plan: StepPlan) -> None:
        """One row for each request whose next token is known or in flight, unless that is its last."""
        # a decoding request has computed all tokens but the newest
        rows = [each for each in self.decoding.values() if each.num_computed_tokens < each.last_position]
        size = self.page_size
        needy = [each for each in rows if each.num_computed_tokens == len(each.pages) * size]
        if len(needy) <= self._pages.available:
            for request, page in zip(needy, self._pages.take(len(needy)), strict=True):
                add_pages(request, [page])
        else:
            rows = self._share_out_pages(rows)
        entries = sum([len(each.pages) for each in rows])
        while entries > plan.page_indices:  # shared pages count once for each row; those at the end sit out
            entries -= len(rows.pop().pages)
        plan.set_decode(rows, entries)
        if self.capacity.reads_shared_pages_once:
            plan.shared = self._shared_prefixes.of(rows)

    def _plan_chunk(self, request: Request, plan: StepPlan) -> bool:
        """Add the request's next chunk, as long as the limits allow. False if no page was to be had."""
        if plan.is_full:
            return True
        start = request.num_computed_tokens
        room = plan.page_indices - len(request.pages)
        growth = min(self._pages.available, room)
        limit = (len(request.pages) + growth) * self.page_size if room >= 0 else 0
        end = min(plan.furthest(request), limit)
        if end <= start:
            return False
        add_pages(request, self._pages.take(self._pages_of(end) - len(request.pages)))
        plan.add(chunk := Chunk(request, start, end))
        if self.cache.enabled:
            plan.note_first_page(chunk, self.page_size)
        return True

    def _admit(self, plan: StepPlan) -> None:
        """Admit waiting requests while rows, tokens and pages last. Stops at the first that does not fit,
        so that small requests do not starve a large one."""
        if plan.is_full or not self._free_slots or not self.waiting:
            return
        # what running requests will want soon: the rest of their prompts, and a page each to grow
        reserve = self.num_running
        for request in self.prefilling.values():
            reserve += self._pages_of(request.num_tokens) - len(request.pages)
        for request in self.waiting.candidates():
            if plan.is_full or not self._free_slots:
                return
            try:
                needed = self._try_admit(request, plan, reserve)
            except Exception as error:  # a request that cannot be prepared ends alone
                logger.exception("request %s could not be prepared", request.id)
                self._end_with_error(request, f"the request could not be prepared: {error}")
                continue
            if needed is None:
                return
            reserve += needed

    def _try_admit(self, request: Request, plan: StepPlan, reserve: int) -> int | None:
        """Pages to reserve for it from now on; 0 if it waits for a page in this step; None: no room."""
        assert not request.num_in_flight, "a token is in flight that must be known"
        if request.matcher is not None and not request.output_ids and (begun := self._jump(request)):
            self.counters.generation_tokens += len(begun)
            self.outputs.append(TokenOutput.of(request, begun))
            if request.finished:
                return 0
        tokens, reusable = request.known_tokens(), num_reusable(request)
        match = self.cache.match_prefix(tokens[:reusable], request.extra_key)
        start = len(match.pages) * self.page_size
        shareable = start + self.page_size <= reusable
        if shareable and (match.node, tokens[start : start + self.page_size].tobytes()) in plan.first_pages:
            return 0
        total = self._pages_of(len(tokens))
        new = total - len(match.pages)
        alone = not self.num_running
        if self._pages.available - match.num_unlocked_pages - new < reserve and not alone:
            return None
        if plan.page_indices - total < reserve and not alone:
            return None
        slot = self._free_slots[-1]
        self._table.bind(slot, request)
        self.waiting.remove(request)
        request.status, request.slot = RequestStatus.RUNNING, self._free_slots.pop()
        self.prefilling[slot] = request
        self.cache.lock(match.node, hit=True)
        request.node, request.num_tree_pages = match.node, len(match.pages)
        request.num_computed_tokens = start
        add_pages(request, match.pages)
        if not request.num_preemptions:
            request.num_cached_tokens = min(start, request.num_prompt_tokens)
            request.queue_seconds = time.monotonic() - request.arrival_time
            self.counters.prompt_tokens += request.num_prompt_tokens
            self.counters.cached_tokens += request.num_cached_tokens
        self._plan_chunk(request, plan)
        return self._pages_of(len(tokens)) - len(request.pages) + 1

    def _advance(self, plan: StepPlan) -> None:
        """Count the planned step as computed; it will be, before any later step."""
        for request in plan.decode:
            request.num_computed_tokens += 1
            request.num_in_flight += 1
        shares = False
        for chunk in plan.chunks:
            request = chunk.request
            if chunk.samples:
                request.num_in_flight += 1
                self.decoding[request.slot] = self.prefilling.pop(request.slot)
                shares |= request.num_cached_tokens > 0
            request.num_computed_tokens = chunk.end
            self._pages.insert(request, chunk.end)
        if shares and self.capacity.reads_shared_pages_once:
            # side by side, rows that share a prefix can be a group, and those of nested ones
            self.decoding = dict(sorted(self.decoding.items(), key=lambda each: each[1].pages))

    def process(self, batch: ScheduleBatch, tokens: StepTokens) -> list[TokenOutput]:
        """Take in what a step sampled. Rows of requests that ended meanwhile are ignored."""
        outputs = self.outputs  # at once: no end is lost if a later row shows a bug
        ids = tokens.token_ids.tolist()
        self._refuse_invalid(batch, tokens.token_ids)
        take_pooled(batch, tokens, self.config.embedding_pooling)
        with_logprobs = batch.variant == SamplingVariant.FULL
        finished, count = RequestStatus.FINISHED, 0
        sampled: Iterable[tuple[int, tuple[Request, int]]] = enumerate(zip(batch.sampled, ids, strict=True))
        if len(given := batch.sampling.given_ids):
            outputs += take_prompt_logprobs(batch, tokens)
            sampled = (each for each in sampled if given[each[0]] < 0)
        for index, (request, token) in sampled:
            if request.status is finished:
                continue
            if request.num_foreseen:
                request.num_foreseen -= 1
                continue
            request.num_in_flight -= 1
            self._append(request, token)
            taken = [token]
            if request.matcher is not None and not request.finished:
                try:
                    accept(request, token)
                    taken += self._jump(request)
                except GrammarError as error:
                    self._end_with_error(request, str(error))
                    continue
            count += len(taken)
            output = TokenOutput.of(request, taken)
            if with_logprobs and (num_top := request.params.logprobs) is not None:
                num_asked = len(request.params.logprob_token_ids)
                output.logprobs = [tokens.logprobs_of(index, num_top, num_asked)]
            outputs.append(output)
        self.counters.generation_tokens += count
        return self.take_outputs()

    def masks(self, batch: ScheduleBatch) -> U32 | None:
        """What grammars allow in a step that is launched, uint32 [C, ceil(vocab / 32)]; None for no grammar.

        All steps before it must have been processed. A request whose grammar fails ends.
        """
        if not len(batch.constrained):
            return None
        started = time.perf_counter()
        masks, bounded, failed = step_masks(batch, self.limits.vocab_size)
        self.counters.mask_seconds += time.perf_counter() - started
        self.counters.constrained_tokens += bounded
        for request, error in failed:
            self._end_with_error(request, error)
        return masks

    def _append(self, request: Request, token: int) -> None:
        """Append a token, which may be the last."""
        output_ids = request.output_ids
        output_ids.append(token)
        if token in request.stop_set and len(output_ids) > request.params.min_new_tokens:
            request.matched_stop = token
            self._finish(request, FinishReason.STOP)
        elif len(output_ids) >= request.output_limit:
            self._finish(request, FinishReason.LENGTH)

    def _jump(self, request: Request) -> list[int]:
        """Append the tokens that a grammar dictates next, so that one chunk computes what took a step each.

        The first may be what a step in flight samples, whose result is then not looked at. Returns them,
        none where too few steps are saved. Raises GrammarError.
        """
        params = request.params
        if self.config.disable_jump_forward or params.logprobs is not None or params.scores_prompt:
            return []
        tokens, in_flight = forced(request), request.num_in_flight
        least = MIN_JUMP if request.slot in self.decoding else 1
        ends = bool(tokens) and tokens[-1] in request.stop_set  # then none of them is computed at all
        if len(tokens) - in_flight < least and not ends:
            return []
        request.num_foreseen, request.num_in_flight = request.num_foreseen + in_flight, 0
        before = len(request.output_ids)
        for token in tokens:
            self._append(request, token)
            if request.finished:
                break
            accept(request, token)
        taken = request.output_ids[before:]
        self.counters.forced_tokens += len(taken) - in_flight
        if request.slot in self.decoding:  # before all who prefill: decode rows do not wait for prompts
            self.prefilling = {request.slot: self.decoding.pop(request.slot), **self.prefilling}
        return taken

    def _refuse_invalid(self, batch: ScheduleBatch, token_ids: I32) -> None:
        """End requests for which the model gave something that is no token, as NaN logits do."""
        invalid = (token_ids < 0) | (token_ids >= self.limits.vocab_size)
        for index in np.flatnonzero(invalid).tolist():
            request = batch.sampled[index]
            if not request.finished:
                self._end_with_error(request, f"the model gave no valid token (id {token_ids[index]})")

    # ---- pages ----

    @property
    def _used_pages(self) -> int:
        """Pages of running requests that are not in the tree."""
        running = chain(self.prefilling.values(), self.decoding.values())
        return sum(len(each.pages) - each.num_tree_pages for each in running)

    def _pages_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def _release(self, request: Request, keep_pages: bool) -> None:
        """Take slot and pages from a running request. `keep_pages`: what can be cached goes to the tree."""
        self._pages.release(request, keep_pages)
        self.prefilling.pop(request.slot, None)
        self.decoding.pop(request.slot, None)
        self._free_slots.append(request.slot)
        request.slot = -1

    def _finish(self, request: Request, reason: FinishReason, *, keep_pages: bool = True) -> None:
        if request.status == RequestStatus.RUNNING:
            self._release(request, keep_pages)
        else:
            self.waiting.remove(request)
        request.status, request.finish_reason = RequestStatus.FINISHED, reason
        del self.requests[request.id]
        self.counters.finished += reason in (FinishReason.STOP, FinishReason.LENGTH)
        self.counters.aborted += reason == FinishReason.ABORT
        self.counters.errors += reason == FinishReason.ERROR

    def _end_with_error(self, request: Request, error: str) -> None:
        self._finish(request, FinishReason.ERROR, keep_pages=False)
        self.outputs.append(TokenOutput.of(request, [], error))

    # ---- when pages are short ----

    def _claim(self, request: Request) -> tuple[int, int]:
        return claim(request) if self._by_priority else (0, request.turn)

    def _feed_best_claim(self) -> None:
        """No page is left: if the best claim of all is a prefill that needs one, others make room."""
        best = min([*self.prefilling.values(), *self.decoding.values()], key=self._claim)
        if best.slot in self.prefilling and best.num_computed_tokens == len(best.pages) * self.page_size:
            self._take_from_lower_claims(best)

    def _share_out_pages(self, rows: list[Request]) -> list[Request]:
        """Decode rows that get to run when there are not pages for all, best claim first."""
        placed = []
        for request in sorted(rows, key=self._claim):
            if request.status != RequestStatus.RUNNING:
                continue  # preempted for the sake of an earlier one
            needs_page = request.num_computed_tokens == len(request.pages) * self.page_size
            if not needs_page or self._take_from_lower_claims(request):
                placed.append(request)
        return placed

    def _take_from_lower_claims(self, request: Request) -> bool:
        """Get one page for `request`, preempting those of lower claim, cheapest first, until there is one."""
        own = self._claim(request)
        while not self._pages.available:
            running = [*self.prefilling.values(), *self.decoding.values()]
            victims = [each for each in running if self._claim(each) > own]
            if not victims:
                return False
            self._preempt(min(victims, key=self._cost_of_preempting))
        add_pages(request, self._pages.take(1))
        return True

    def _cost_of_preempting(self, request: Request) -> tuple[int, int, int]:
        """Low priority first, then tokens to compute again; of equals the last to arrive."""
        shared = 0
        node = request.node
        while node is not None:
            shared += len(node.pages) if node.lock_count > 1 else 0
            node = node.parent
        redo = request.num_computed_tokens - shared * self.page_size
        return (request.priority if self._by_priority else 0), redo, -request.turn

    def _preempt(self, request: Request) -> None:
        """Back to the queue. Its finished pages stay in the tree, so coming back is mostly a cache hit."""
        self._release(request, keep_pages=True)
        request.status = RequestStatus.WAITING
        request.num_preemptions += 1
        self.counters.preemptions += 1
        self.waiting.add(request)
