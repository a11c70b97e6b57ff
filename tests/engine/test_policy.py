import random

import numpy as np
import pytest

from radixmesh.engine.policy import MAX_OVERTAKEN, WINDOW, WaitingQueue
from radixmesh.engine.radix_cache import RadixCache
from radixmesh.engine.request import Request, SamplingParams

PAGE = 2


def request(name, tokens=(1, 2, 3), priority=0):
    return Request(str(name), np.array(tokens, np.int32), SamplingParams(), priority=priority)


def queue(policy, requests, cached=(), seed=0):
    cache = RadixCache(PAGE)
    page = iter(range(1000))
    for tokens in cached:
        cache.insert(np.array(tokens, np.int32), [next(page) for _ in range(len(tokens) // PAGE)])
    waiting = WaitingQueue(policy, cache, seed)
    for each in requests:
        waiting.add(each)
    return waiting


def names(waiting):
    return [each.id for each in waiting.candidates()]


def test_fcfs_is_order_of_arrival_and_preempted_come_back_first():
    requests = [request(index) for index in range(4)]
    waiting = queue("fcfs", requests)
    waiting.remove(requests[0])
    waiting.remove(requests[2])
    assert names(waiting) == ["1", "3"]
    requests[0].num_preemptions = 1
    waiting.add(requests[0])
    assert names(waiting) == ["0", "1", "3"]
    assert len(waiting) == 3


def test_lpm_takes_the_longest_cached_prefix_first():
    requests = [
        request("none", [9, 9, 9]),
        request("short", [1, 1, 2, 3, 4]),
        request("long", [1, 1, 2, 2, 5]),
        request("last", [1, 1, 2, 2]),  # its last token is always computed: one page counts
    ]
    waiting = queue("lpm", requests, cached=[[1, 1, 2, 2]])
    assert names(waiting) == ["long", "short", "last", "none"]
    preempted = requests[0]
    waiting.remove(preempted)
    preempted.num_preemptions = 1
    waiting.add(preempted)
    assert names(waiting)[0] == "none"


def test_dfs_weight_stays_in_the_heavier_branch():
    trees = [[1, 1, 2, 2], [1, 1, 3, 3], [7, 7]]
    requests = [
        request("7a", [7, 7, 0]),
        request("13a", [1, 1, 3, 3, 0]),
        request("12a", [1, 1, 2, 2, 0]),
        request("7b", [7, 7, 1]),
        request("12b", [1, 1, 2, 2, 1]),
        request("none", [5, 5, 5]),
    ]
    waiting = queue("dfs-weight", requests, cached=trees)
    assert names(waiting) == ["12a", "12b", "13a", "7a", "7b", "none"]


def test_priority_then_arrival():
    requests = [request(index, priority=index % 3) for index in range(6)]
    assert names(queue("priority", requests)) == ["2", "5", "1", "4", "0", "3"]


def test_random_is_a_shuffle_that_the_seed_fixes():
    orders = [names(queue("random", [request(i) for i in range(50)], seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0], key=int) == [str(index) for index in range(50)] != orders[0]


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight", "priority", "random"])
def test_overtaken_too_often_goes_first(policy):
    """`poor` is what each policy likes least; newcomers are admitted ahead of it, but not for ever."""
    waiting = queue(policy, [request("poor", [9, 9, 9], priority=-1)], cached=[[1, 1]])
    overtaken = 0
    while True:
        waiting.add(request(f"n{overtaken}", [1, 1, 1]))
        first = waiting.candidates()[0]
        if first.id == "poor":
            break
        waiting.remove(first)
        overtaken += 1
        assert overtaken <= MAX_OVERTAKEN + 1
    if policy != "random":
        assert overtaken == MAX_OVERTAKEN + 1


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "dfs-weight", "priority", "random"])
def test_random_operations_against_a_list(policy):
    rng = random.Random(3)
    waiting, inside, outside = queue(policy, [], cached=[[1, 1, 2, 2], [3, 3]]), [], []
    for step in range(2000):
        what = rng.random()
        if what < 0.5:
            tokens = [rng.randrange(1, 4)] * rng.randrange(1, 7)
            inside.append(request(step, tokens, priority=rng.randrange(3)))
            waiting.add(inside[-1])
        elif what < 0.9 and inside:
            gone = inside.pop(rng.randrange(len(inside)))
            waiting.remove(gone)
            outside.append(gone)
        elif outside:
            back = outside.pop()
            back.num_preemptions += 1
            waiting.add(back)
            inside.append(back)
        candidates = waiting.candidates() if step % 10 == 0 else []
        assert len({id(each) for each in candidates}) == len(candidates)
        assert {each.id for each in candidates} <= {each.id for each in inside}
        assert not candidates or len(candidates) >= min(len(inside), WINDOW)
        assert len(waiting) == len(inside)
    assert sorted(each.turn for each in waiting) == sorted(each.turn for each in inside)
    waiting.clear()
    assert waiting.candidates() == []
