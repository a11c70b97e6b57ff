import random

import pytest

from radixmesh.engine.page_pool import IntegrityError, PagePool


def take(pool: PagePool, count: int) -> list[int]:
    pages = pool.allocate(count)
    assert pages is not None
    return sorted(pages)


def test_lowest_pages_come_first_and_come_back():
    pool = PagePool(4)
    assert take(pool, 2) == [0, 1]
    assert pool.allocate(3) is None
    assert pool.num_free == 2  # a refused allocation takes nothing
    pool.free([1])
    assert pool.allocate(0) == []
    assert take(pool, 3) == [1, 2, 3]


@pytest.mark.parametrize("wrong", [2, -1, 4])
def test_double_free_raises_when_strict_and_is_repaired_when_not(wrong):
    strict = PagePool(4, strict=True)
    strict.allocate(2)
    with pytest.raises(IntegrityError, match=f"page {wrong} "):
        strict.free([wrong])

    pool = PagePool(4)
    pool.allocate(2)
    pool.free([wrong, 0])
    assert (pool.num_violations, pool.num_free) == (1, 3)
    assert take(pool, 3) == [0, 2, 3]  # no page twice


def test_repair_frees_all_but_the_pages_in_use():
    pool = PagePool(6)
    pool.allocate(6)
    pool.repair([1, 4])
    assert take(pool, 4) == [0, 2, 3, 5]


def test_random_operations_against_a_set():
    rng = random.Random(5)
    pool = PagePool(50, strict=True)
    used: set[int] = set()
    for _ in range(5000):
        if rng.random() < 0.5:
            want = rng.randrange(12)
            got = pool.allocate(want)
            assert (got is None) == (want > 50 - len(used))
            if got is not None:
                assert len(set(got)) == want and not used & set(got)
                used |= set(got)
        else:
            back = rng.sample(sorted(used), rng.randint(0, min(8, len(used))))
            pool.free(back)
            used -= set(back)
        assert pool.num_free == 50 - len(used)
