"""Groups of decode rows that begin with the same pages."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from radixmesh.engine.shared_prefixes import SharedPrefixes, common_pages, most_saving_runs
from tests.engine.driving import Run, make_engine, make_request


def decoding(tables):
    """Requests that hold these pages of the tree; all but the first found some there."""
    rows = [make_request(turn, [1]) for turn in range(len(tables))]
    for row, pages in zip(rows, tables, strict=True):
        row.pages, row.num_tree_pages, row.num_cached_tokens = pages, len(pages), int(row is not rows[0])
    return rows


def rows_of_a_tree(paths):
    """Page tables in which a page stands for all tokens up to its end, as in the radix tree."""
    ids: dict[tuple[int, ...], int] = {}
    return [[ids.setdefault(tuple(path[: end + 1]), len(ids)) for end in range(len(path))] for path in paths]


PATHS = st.lists(st.lists(st.integers(0, 1), max_size=5), max_size=9)


@given(PATHS, st.booleans(), st.sets(st.integers(0, 8)))
def test_groups_claim_what_is_equal_and_nothing_else(paths, in_order, leaving):
    tables = rows_of_a_tree(sorted(paths) if in_order else paths)
    rows, shared = decoding(tables), SharedPrefixes()
    for one, other in zip(tables, tables[1:], strict=False):
        equal = [length for length in range(6) if one[:length] == other[:length]]
        assert common_pages(*decoding([one, other])) == min(max(equal), len(one), len(other))
    check_claims(tables, shared.of(rows))
    stay = [at for at in range(len(rows)) if at not in leaving]
    check_claims([tables[at] for at in stay], shared.of([rows[at] for at in stay]))


def check_claims(tables, found):
    assert len(found.group_rows) == len(found.shared_pages) and len(found.group_rows) in (0, len(tables))
    claimed = np.zeros(len(found.group_rows), int)
    for first in np.flatnonzero(found.group_rows):
        group = range(first, first + found.group_rows[first])
        pages = found.shared_pages[first]
        assert len(group) > 1 and pages > 0 and group.stop <= len(tables)
        assert all(tables[row][:pages] == tables[first][:pages] for row in group)
        assert all(len(tables[row]) >= pages for row in group)
        assert not claimed[first : group.stop].any()
        claimed[first : group.stop] = pages
    assert claimed.tolist() == found.shared_pages.tolist()


def most_saved(common, first, last):
    """By trying every nesting: of rows `first` to `last` the whole, or the best of what lies between those
    that have the fewest pages in common."""
    if first == last:
        return 0
    least = min(common[first:last])
    cuts = [row for row in range(first, last) if common[row] == least]
    parts = zip([first, *(row + 1 for row in cuts)], [*cuts, last], strict=True)
    return max((last - first) * least, sum(most_saved(common, *part) for part in parts))


@given(st.lists(st.integers(0, 4), max_size=10))
def test_the_level_is_taken_that_saves_most(common):
    runs = most_saving_runs(common)
    assert sum((rows - 1) * pages for _, rows, pages in runs) == most_saved(common, 0, len(common))
    assert all(min(common[first : first + rows - 1]) == pages > 0 for first, rows, pages in runs)
    ends = [0, *(first + rows for first, rows, _ in runs)]
    assert all(end <= first for end, (first, _, _) in zip(ends, runs, strict=False))


def test_a_document_for_some_outweighs_a_system_prompt_for_all():
    assert most_saving_runs([9, 9, 1, 9, 1]) == [(0, 3, 9), (3, 2, 9)]
    assert most_saving_runs([2, 1, 1, 1, 2]) == [(0, 6, 1)]
    assert most_saving_runs([]) == []


class Watched:
    """The engine's runner, of which every batch is kept."""

    def __init__(self, engine):
        self.batches, self._forward = [], engine.runner.forward
        engine.runner.forward = self

    def __call__(self, given):
        self.batches.extend(given)
        return self._forward(given)


def test_rows_of_three_documents_under_one_system_prompt():
    """Requests come in any order; the fake runner holds every batch to what its groups claim."""
    engine = make_engine(rows=12, chunk=64, pages=200)
    watched = Watched(engine)
    system = list(range(500, 508))  # two pages
    stems = [[*system, *(7 * stem + token for token in range(12))] for stem in range(3)]
    run = Run(engine)
    for stem in stems:  # their prefixes are cached first
        engine.add_request(make_request(f"first of {stem[-1]}", [*stem, 1], max_new=1))
        run.all()
    for turn in range(12):
        engine.add_request(make_request(turn, [*stems[turn * 5 % 3], 100 + turn], max_new=30))
    for _ in range(14):
        run.step()
    batch = watched.batches[-1]
    assert batch.num_decode_rows == 12
    assert batch.group_rows.tolist() == [4, 0, 0, 0] * 3
    assert batch.shared_pages.tolist() == [5] * 12
    run.all()


def test_nothing_is_shared_without_a_cache_or_a_common_prefix_or_use_for_it():
    for options, same in (({"disable_radix_cache": True}, True), ({}, False), ({"sharing": False}, True)):
        engine = make_engine(rows=6, chunk=64, **options)
        watched = Watched(engine)
        run = Run(engine)
        for turn in range(6):
            prompt = [5] * 8 if same else [turn] * 8
            engine.add_request(make_request(turn, [*prompt, turn], max_new=5))
        run.all()
        assert not any(len(batch.group_rows) for batch in watched.batches)


def test_groups_hold_while_requests_come_are_preempted_and_leave():
    """Random loads with few pages, where the fake runner checks every claim; many steps have groups."""
    rng = random.Random(3)
    engine = make_engine(pages=30, rows=10, chunk=24)
    watched, run = Watched(engine), Run(engine)
    stems = [[rng.randrange(900) for _ in range(16)] for _ in range(3)]
    for turn in range(150):
        cut = rng.choice((4, 8, 16))
        prompt = [*rng.choice(stems)[:cut], *(rng.randrange(900) for _ in range(rng.randrange(1, 9)))]
        engine.add_request(make_request(turn, prompt, max_new=rng.randrange(2, 40)))
        for _ in range(rng.randrange(3)):
            run.step()
        if rng.random() < 0.1:
            engine.abort(str(rng.randrange(turn + 1)))
    run.all()
    assert engine.stats().preemptions > 5
    assert sum(len(batch.group_rows) > 0 for batch in watched.batches) > len(watched.batches) // 4


def test_rows_of_which_none_was_cached_are_not_searched():
    rows = decoding([[7, 8, 20], [7, 8, 21], [7, 8, 22]])
    for row in rows:
        row.num_cached_tokens = 0
    shared = SharedPrefixes()
    assert not len(shared.of(rows).group_rows)
    rows[2].num_cached_tokens = 1
    assert not len(shared.of(rows).group_rows)  # as long as the same decode
    assert shared.of(rows[1:]).group_rows.tolist() == [2, 0]


def test_what_is_found_is_kept_until_other_rows_decode():
    rows = decoding([[7, 8, 20 + turn] for turn in range(4)])
    shared = SharedPrefixes()
    found = shared.of(rows)
    assert found.group_rows.tolist() == [4, 0, 0, 0] and found.shared_pages.tolist() == [2] * 4
    assert shared.of(list(rows)) is found
    assert shared.of(rows[1:]).group_rows.tolist() == [3, 0, 0]
    assert not len(shared.of([]).group_rows)
    rows[2].pages = [1, 2, 3]  # it came back, with pages of its own
    assert shared.of(rows).group_rows.tolist() == [2, 0, 0, 0]
