"""Snapshots against a walk over the whole tree, and what they cost on a large one."""

import random
import time

import msgspec
import numpy as np
import pytest

from radixmesh.backends.fake.runner import FakeRunner
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.messages import Snapshot
from radixmesh.engine.radix_cache import RadixCache, RadixNode
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, RunnerCapacity
from radixmesh.engine.snapshot import MAX_NODES, TOKENS_SHOWN, by_recency

PAGE = 16


def make_engine(pages: int = 40_000) -> Engine:
    capacity = RunnerCapacity(
        num_pages=pages, page_size=PAGE, max_running_requests=8, max_step_tokens=256, max_page_indices=pages
    )
    info = ModelInfo("fake", "", 997, 4096, frozenset({3}))
    return Engine(EngineConfig(), info, FakeRunner(capacity, 997), strict=True)


def make_request(name: str, prompt: list[int], max_new: int = 40) -> Request:
    params = SamplingParams(max_new_tokens=max_new, temperature=0.0, ignore_eos=True)
    return Request(id=name, prompt_ids=np.array(prompt, np.int32), params=params)


def grow(cache: RadixCache, count: int, wide: bool) -> None:
    """Insert `count` prompts of up to eight pages, `wide` with nothing in common, and use some again."""
    rng = random.Random(7)
    page = 0
    for _ in range(count):
        tokens = [rng.randrange(997 if wide else 7) for _ in range(rng.randint(1, 8))]
        prompt = np.repeat(np.array(tokens, np.int32), PAGE)
        cache.insert(prompt, list(range(page, page + len(tokens))))
        page += len(tokens)
        if rng.random() < 0.3:
            cache.match_prefix(np.repeat(np.array([rng.randrange(3)] * 4, np.int32), PAGE))


def all_nodes(cache: RadixCache) -> list[RadixNode]:
    found, stack = [], [cache.root]
    while stack:
        for child in stack.pop().children.values():
            found.append(child)
            stack.append(child)
    return found


@pytest.mark.parametrize("wide", [True, False])
def test_nodes_come_by_their_last_use_and_after_their_parents(wide: bool) -> None:
    cache = RadixCache(PAGE)
    grow(cache, 2000, wide)
    cache.evict(500)
    cache.check_integrity()
    got = list(by_recency(cache))
    assert set(got) == set(all_nodes(cache)) and len(got) == len(set(got)) > 300
    uses = [node.last_used for node in got]
    assert uses == sorted(uses, reverse=True)
    place = {node: index for index, node in enumerate(got)}
    assert all(node.parent is cache.root or place[node.parent] < place[node] for node in got if node.parent)


@pytest.mark.parametrize("wide", [True, False])
def test_a_snapshot_of_ten_thousand_nodes_takes_under_a_millisecond(wide: bool) -> None:
    engine = make_engine()
    grow(engine.schedulers[0].cache, 15_000, wide)
    assert len(all_nodes(engine.schedulers[0].cache)) >= 10_000
    engine.view()
    seconds = []
    for _ in range(50):  # the best of many: other processes share the machine
        start = time.perf_counter()
        (group,) = engine.view()
        seconds.append(time.perf_counter() - start)
    assert len(group.nodes) == MAX_NODES
    assert min(seconds) < 0.001, f"{min(seconds) * 1e3:.2f} ms"


def test_what_a_snapshot_says() -> None:
    engine = make_engine(64)
    shared = list(range(10, 10 + 6 * PAGE))
    engine.add_request(make_request("first", [*shared, *range(200, 240)]))
    while engine.has_work:
        engine.step()
    for name in ("second", "third"):
        engine.add_request(make_request(name, [*shared, 5, 6, *[ord(each) for each in name]]))
    for _ in range(4):
        engine.step()
    (group,) = engine.view()
    scheduler = engine.schedulers[0]
    assert group.stats == scheduler.stats() and group.stats.num_running == 2
    assert (group.max_running, group.step_tokens, group.num_prefixes) == (8, 256, 1)

    nodes = {node.id: node for node in group.nodes}
    assert len(nodes) == len(all_nodes(scheduler.cache))
    assert sum(node.num_tokens for node in group.nodes) == group.stats.cached_pages * PAGE
    (trunk,) = [node for node in group.nodes if node.parent == 0]
    assert trunk.token_ids == shared[:TOKENS_SHOWN] and trunk.num_tokens == len(shared)
    assert (trunk.hits, trunk.locks, trunk.idle) == (2, 2, 0)
    assert trunk.num_children == len([node for node in group.nodes if node.parent == trunk.id])

    running = {request.id: request for request in group.requests}
    assert running.keys() == {"second", "third"}
    for name, request in running.items():
        assert request.node in nodes and request.num_cached_tokens == len(shared)
        assert request.num_prompt_tokens == len(shared) + 2 + len(name)
        assert request.num_computed_tokens >= request.num_prompt_tokens
        assert request.num_output_tokens == len(scheduler.requests[name].output_ids) > 0


def test_a_snapshot_crosses_the_process_border() -> None:
    engine = make_engine(64)
    engine.add_request(make_request("one", list(range(100))))
    engine.step()
    sent = Snapshot(5, engine.view())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Snapshot) == sent
