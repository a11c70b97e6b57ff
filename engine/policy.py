"""`WaitingQueue`: who is admitted next. One static order per policy; lpm and dfs-weight look at the cache."""

import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Literal

from .radix_cache import RadixCache, RadixNode
from .request import Request

Policy = Literal["fcfs", "lpm", "dfs-weight", "priority", "random"]
Key = Callable[[Request], Any]

# Candidates for one step. Bounds what lpm and dfs-weight spend on lookups when the queue is long.
WINDOW = 128
# Under any policy a request goes first once this many later ones have been admitted before it.
MAX_OVERTAKEN = 256


class WaitingQueue:
    """Waiting requests. `candidates` gives the order in which to try them.

    fcfs          order of arrival
    lpm           longest cached prefix first, among the `WINDOW` oldest
    dfs-weight    depth first through the tree, heavier branches first, so that a branch is used while
                  it is cached; among the `WINDOW` oldest
    priority      higher `Request.priority` first, then order of arrival
    random        any order

    Preempted requests come first among equals. No request waits for ever: see `MAX_OVERTAKEN`.
    """

    def __init__(self, policy: Policy, cache: RadixCache, seed: int | None = None) -> None:
        self.policy = policy
        self._cache = cache
        self._rng = random.Random(seed)
        self._arrivals = 0
        self.num_prompt_tokens = 0  # of all that wait
        self._departures = 0  # requests that left the queue and are not back in it
        self._by_turn: list[Request] = []
        self._ranks: dict[int, float] = {}  # by turn; for `random` only
        self._by_rank: list[Request] = self._by_turn
        self._rank: Key = _turn
        if policy == "priority":
            self._by_rank, self._rank = [], claim
        elif policy == "random":
            self._by_rank, self._rank = [], lambda request: self._ranks[request.turn]

    def __len__(self) -> int:
        return len(self._by_turn)

    def __iter__(self) -> Iterator[Request]:
        """All waiting requests in order of arrival."""
        return iter(self._by_turn)

    def add(self, request: Request) -> None:
        """Queue a new request, which fixes its `turn`, or one that was preempted."""
        preempted = request.turn >= 0
        if preempted:
            self._departures -= 1
        else:
            request.turn = self._arrivals
            self._arrivals += 1
        if self.policy == "random":
            self._ranks[request.turn] = -1.0 if preempted else self._rng.random()
        self.num_prompt_tokens += request.num_prompt_tokens
        insort(self._by_turn, request, key=_turn)
        if self._by_rank is not self._by_turn:
            insort(self._by_rank, request, key=self._rank)

    def remove(self, request: Request) -> None:
        """Take a request out: it was admitted, or it ended."""
        self.num_prompt_tokens -= request.num_prompt_tokens
        _remove(self._by_turn, request, _turn)
        if self._by_rank is not self._by_turn:
            _remove(self._by_rank, request, self._rank)
        self._ranks.pop(request.turn, None)
        self._departures += 1

    def clear(self) -> None:
        """Forget all that wait."""
        for request in list(self._by_turn):
            self.remove(request)

    def candidates(self) -> list[Request]:
        """At most `2 * WINDOW` requests in the order in which to admit them."""
        late = self._departures - MAX_OVERTAKEN  # an earlier turn than this was overtaken too often
        num_overdue = min(WINDOW, bisect_left(self._by_turn, late, key=_turn))
        overdue = self._by_turn[:num_overdue]
        if self._by_rank is self._by_turn:
            rest = self._by_turn[num_overdue : num_overdue + WINDOW]
        else:
            skip = {request.turn for request in overdue}
            rest = [request for request in self._by_rank[: WINDOW + num_overdue] if request.turn not in skip]
        if self.policy == "lpm":
            rest.sort(key=self._prefix_key())
        elif self.policy == "dfs-weight":
            rest.sort(key=self._tree_key(rest))
        return overdue + rest

    def _peek(self, request: Request) -> tuple[RadixNode, int]:
        return self._cache.peek(request.known_tokens()[:-1], request.extra_key)

    def _prefix_key(self) -> Key:
        return lambda request: (not request.num_preemptions, -self._peek(request)[1], request.turn)

    def _tree_key(self, requests: list[Request]) -> Key:
        """Sort key: per tree level, the branch with more waiting requests below it first."""
        paths = {request.turn: _path(self._peek(request)[0]) for request in requests}
        weights = Counter(chain.from_iterable(paths.values()))

        def key(request: Request) -> tuple[bool, list[tuple[int, int]], int]:
            branches = [(-weights[serial], serial) for serial in paths[request.turn]]
            branches.append((0, 0))  # who ends here comes after those who share more
            return not request.num_preemptions, branches, request.turn

        return key


def claim(request: Request) -> tuple[int, int]:
    """Sort key under the priority policy: the smaller, the earlier it is served."""
    return -request.priority, request.turn


def _turn(request: Request) -> int:
    return request.turn


def _remove(requests: list[Request], request: Request, key: Key) -> None:
    index = bisect_left(requests, key(request), key=key)
    while requests[index] is not request:  # several preempted ones share a rank under `random`
        index += 1
    del requests[index]


def _path(node: RadixNode) -> list[int]:
    """Serials of the nodes from below the root down to `node`."""
    path = []
    each = node
    while each.parent is not None:
        path.append(each.serial)
        each = each.parent
    return path[::-1]
