"""What the engine looks like right now, for people: its groups, running requests, and the tree's warm end.

A snapshot is taken between two steps, so its cost is bounded whatever the size of the tree: the tree
keeps siblings in order of their last use (`RadixNode.children`), and a heap over these orders finds the most
recently used nodes of all without looking at the others.
"""

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from .radix_cache import RadixCache, RadixNode
from .request import Request
from .scheduler import Scheduler
from .stats import EngineStats

MAX_NODES = 192  # of a group
MAX_REQUESTS = 64  # of a group
TOKENS_SHOWN = 64  # of a node: its first


@dataclass(slots=True)
class NodeView:
    """A node of the radix tree. The root, which has no tokens, is 0 and never among the nodes."""

    id: int
    parent: int
    num_tokens: int
    token_ids: list[int]  # the first TOKENS_SHOWN
    num_children: int  # shown or not
    hits: int  # requests that found it here
    locks: int  # running requests that hold it
    idle: int  # uses of the tree since it was last used


@dataclass(slots=True)
class RequestView:
    """A running request. `node` is where its part of the tree ends, 0 if it has none."""

    id: str
    node: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_computed_tokens: int
    num_output_tokens: int
    seconds: float  # since it arrived


@dataclass(slots=True)
class GroupView:
    """One data parallel group. Nodes come most recently used first, each after its parent."""

    stats: EngineStats
    max_running: int
    step_tokens: int  # at most, in one step
    num_prefixes: int  # children of the root, shown or not
    requests: list[RequestView]
    nodes: list[NodeView]


def view_group(scheduler: Scheduler, max_nodes: int = MAX_NODES) -> GroupView:
    """A snapshot of `scheduler` with up to `max_nodes` nodes."""
    running = chain(scheduler.prefilling.values(), scheduler.decoding.values())
    now = time.monotonic()
    return GroupView(
        stats=scheduler.stats(),
        max_running=scheduler.max_rows,
        step_tokens=scheduler.token_budget,
        num_prefixes=len(scheduler.cache.root.children),
        requests=[_view_request(each, now) for each in islice(running, MAX_REQUESTS)],
        nodes=[_view_node(each, scheduler.cache) for each in islice(by_recency(scheduler.cache), max_nodes)],
    )


def by_recency(cache: RadixCache) -> Iterator[RadixNode]:
    """All nodes but the root, most recently used first and parents before children. Costs what is taken:
    O(log k) for the k-th. The tree must not change meanwhile."""
    # (minus the last use, serial, node, its siblings that were used before it)
    heap: list[tuple[int, int, RadixNode, Iterator[RadixNode]]] = []

    def push_next(siblings: Iterator[RadixNode]) -> None:
        node = next(siblings, None)
        if node is not None:
            heapq.heappush(heap, (-node.last_used, node.serial, node, siblings))

    push_next(reversed(cache.root.children.values()))
    while heap:
        _, _, node, siblings = heapq.heappop(heap)
        yield node
        push_next(siblings)
        push_next(reversed(node.children.values()))


def _view_node(node: RadixNode, cache: RadixCache) -> NodeView:
    assert node.parent is not None
    return NodeView(
        id=node.serial,
        parent=node.parent.serial,
        num_tokens=len(node.tokens),
        token_ids=node.tokens[:TOKENS_SHOWN].tolist(),
        num_children=len(node.children),
        hits=node.hits,
        locks=node.lock_count,
        idle=cache.clock - node.last_used,
    )


def _view_request(request: Request, now: float) -> RequestView:
    return RequestView(
        id=request.id,
        node=request.node.serial if request.node is not None else 0,
        num_prompt_tokens=request.num_prompt_tokens,
        num_cached_tokens=request.num_cached_tokens,
        num_computed_tokens=request.num_computed_tokens,
        num_output_tokens=len(request.output_ids),
        seconds=now - request.arrival_time,
    )
