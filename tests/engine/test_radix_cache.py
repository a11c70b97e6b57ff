"""The radix cache against a brute-force model: a record per cached page, every answer found by a scan."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from radixmesh.engine.page_pool import IntegrityError
from radixmesh.engine.radix_cache import RadixCache

PAGE = 2


def array(tokens):
    return np.array(tokens, dtype=np.int32)


@dataclass
class Record:
    page: int
    last_used: int = 0
    hits: int = 0
    locks: int = 0


class Model:
    """Records by (extra key, all tokens up to and including the page)."""

    def __init__(self, lfu):
        self.lfu, self.clock, self.records = lfu, 0, {}

    def path(self, tokens, extra):
        keys = []
        for end in range(PAGE, len(tokens) + 1, PAGE):
            if (extra, tuple(tokens[:end])) not in self.records:
                break
            keys.append((extra, tuple(tokens[:end])))
        return keys

    def use(self, keys):
        self.clock += 1
        for key in keys:
            self.records[key].last_used = self.clock
        return [self.records[key].page for key in keys]

    def match(self, tokens, extra):
        return self.use(self.path(tokens, extra))

    def insert(self, tokens, pages, extra):
        duplicates, keys = [], []
        for index, page in enumerate(pages):
            key = (extra, tuple(tokens[: (index + 1) * PAGE]))
            record = self.records.setdefault(key, Record(page))
            if record.page != page:
                duplicates.append(page)
            keys.append(key)
        return self.use(keys), duplicates

    def lock(self, keys, by, hit=False):
        for key in keys:
            self.records[key].locks += by
            self.records[key].hits += hit

    def evict(self, count):
        freed: list[int] = []
        while len(freed) < count:
            parents = {(extra, tokens[:-PAGE]) for extra, tokens in self.records}
            leaves = [k for k, record in self.records.items() if k not in parents and not record.locks]
            if not leaves:
                break
            worst = min(leaves, key=lambda k: (self.records[k].hits * self.lfu, self.records[k].last_used))
            freed.append(self.records.pop(worst).page)
        return freed


class Pair:
    """The cache and its model, driven together; every answer is compared."""

    def __init__(self, policy):
        self.cache = RadixCache(PAGE, eviction_policy=policy)
        self.model = Model(policy == "lfu")
        self.next_page = 0
        self.locked = []  # (node, keys)

    def match(self, tokens, extra, lock):
        before = self.cache.cached_pages, self.cache.evictable_pages
        _, length = self.cache.peek(array(tokens), extra)
        match = self.cache.match_prefix(array(tokens), extra)
        keys = self.model.path(tokens, extra)
        assert match.pages == self.model.match(tokens, extra)
        assert length == len(keys) * PAGE
        assert match.num_unlocked_pages == sum(not self.model.records[key].locks for key in keys)
        assert before == (self.cache.cached_pages, self.cache.evictable_pages)
        if lock:
            self._lock(match.node, keys, hit=True)

    def _lock(self, node, keys, hit):
        self.cache.lock(node, hit=hit)
        self.model.lock(keys, 1, hit)
        self.locked.append((node, keys))

    def insert(self, tokens, extra, lock):
        tokens = tokens[: len(tokens) // PAGE * PAGE]
        keys = self.model.path(tokens, extra)
        # as a request does: begin with some of the tree's own pages, bring new ones for the rest
        own = self.next_page % (len(keys) + 1)
        pages = [self.model.records[key].page for key in keys[:own]]
        new = len(tokens) // PAGE - own
        pages += range(self.next_page, self.next_page + new)
        self.next_page += new
        insertion = self.cache.insert(array(tokens), pages, extra)
        assert (insertion.pages, insertion.duplicates) == self.model.insert(tokens, pages, extra)
        if lock:
            self._lock(insertion.node, self.model.path(tokens, extra), hit=False)

    def unlock(self, which):
        if self.locked:
            node, keys = self.locked.pop(which % len(self.locked))
            self.cache.unlock(node)
            self.model.lock(keys, -1)

    def evict(self, count):
        freed = self.cache.evict(count)
        assert len(freed) == len(set(freed))
        assert sorted(freed) == sorted(self.model.evict(count))

    def check(self):
        self.cache.check_integrity()
        records = self.model.records.values()
        assert self.cache.cached_pages == len(records)
        assert self.cache.evictable_pages == sum(not record.locks for record in records)


class CacheMachine(RuleBasedStateMachine):
    tokens = st.lists(st.integers(0, 1), max_size=11)
    extra = st.sampled_from(["", "a"])

    @initialize(policy=st.sampled_from(["lru", "lfu"]))
    def start(self, policy):
        self.pair = Pair(policy)

    @rule(tokens=tokens, extra=extra, lock=st.booleans())
    def match(self, tokens, extra, lock):
        self.pair.match(tokens, extra, lock)

    @rule(tokens=tokens, extra=extra, lock=st.booleans())
    def insert(self, tokens, extra, lock):
        self.pair.insert(tokens, extra, lock)

    @rule(which=st.integers(0, 100))
    def unlock(self, which):
        self.pair.unlock(which)

    @rule(count=st.integers(1, 6))
    def evict(self, count):
        self.pair.evict(count)

    @rule()
    def flush(self):
        assert sorted(self.pair.cache.flush()) == sorted(self.pair.model.evict(10**6))

    @invariant()
    def agrees(self):
        if hasattr(self, "pair"):
            self.pair.check()


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestCacheMachine = CacheMachine.TestCase


@pytest.mark.parametrize("policy", ["lru", "lfu"])
@pytest.mark.parametrize("seed", range(3))
def test_thousands_of_random_operations(policy, seed):
    rng = random.Random(seed)
    pair = Pair(policy)
    for step in range(3000):
        extra = rng.choice(["", "", "adapter"])
        tokens = [rng.choice([0, 0, 0, 1, 2]) for _ in range(rng.randrange(24))]
        what = rng.random()
        if what < 0.35:
            pair.match(tokens, extra, rng.random() < 0.5)
        elif what < 0.65:
            pair.insert(tokens, extra, rng.random() < 0.3)
        elif what < 0.9:
            pair.unlock(rng.randrange(1000))
        else:
            pair.evict(rng.randrange(1, 20))
        if step % 20 == 0:
            pair.check()
    pair.check()


def test_least_recently_used_goes_first_and_only_as_much_as_needed():
    cache = RadixCache(PAGE)
    cache.insert(array([1, 1, 2, 2, 3, 3]), [10, 11, 12])
    cache.insert(array([1, 1, 4, 4]), [10, 13])
    assert cache.evict(1) == [12]  # the tail of the older branch, not all of it
    cache.match_prefix(array([1, 1, 2, 2]))
    assert cache.evict(1) == [13]
    assert cache.match_prefix(array([1, 1, 2, 2, 3, 3])).pages == [10, 11]
    assert sorted(cache.flush()) == [10, 11]
    assert cache.cached_pages == cache.evictable_pages == 0


def test_lfu_keeps_what_was_found_most_often():
    cache = RadixCache(PAGE, eviction_policy="lfu")
    for first in (1, 2):
        cache.insert(array([first, first]), [first])
    for _ in range(2):
        node = cache.match_prefix(array([1, 1])).node
        cache.lock(node, hit=True)
        cache.unlock(node)
    cache.match_prefix(array([2, 2]))  # more recent, yet used less often
    assert cache.evict(1) == [2]


def test_locked_pages_survive_and_a_split_keeps_the_lock():
    cache = RadixCache(PAGE)
    insertion = cache.insert(array([1, 1, 2, 2]), [0, 1])
    cache.lock(insertion.node)
    cache.insert(array([1, 1, 3, 3]), [0, 2])  # splits the locked node
    assert cache.flush() == [2]
    cache.unlock(insertion.node)
    with pytest.raises(IntegrityError, match="more often"):
        cache.unlock(insertion.node)
    cache.check_integrity()


def test_extra_key_separates_equal_tokens():
    cache = RadixCache(PAGE)
    cache.insert(array([1, 1, 2, 2]), [0, 1], "a")
    assert cache.match_prefix(array([1, 1, 2, 2])).pages == []
    assert cache.match_prefix(array([1, 1, 2, 2]), "a").pages == [0, 1]
    assert cache.match_prefix(array([1, 1, 2, 2]), "\ud800").pages == []  # any string will do


def test_disabled_cache_takes_and_finds_nothing():
    cache = RadixCache(PAGE, enabled=False)
    insertion = cache.insert(array([1, 1]), [0])
    assert (insertion.pages, insertion.duplicates) == ([], [])
    cache.lock(insertion.node)
    assert cache.match_prefix(array([1, 1])).pages == []
    cache.unlock(insertion.node)
    assert cache.cached_pages == 0


def test_broken_counters_are_noticed():
    cache = RadixCache(PAGE)
    cache.insert(array([1, 1]), [0])
    cache.evictable_pages += 1
    with pytest.raises(IntegrityError, match="evictable_pages"):
        cache.check_integrity()
