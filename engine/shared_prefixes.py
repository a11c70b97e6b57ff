"""Which decode rows begin with the same pages, so that a device can read these once for all of them."""

from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .batch import I32
from .request import Request

_NOTHING: I32 = np.empty(0, np.int32)


class SharedPages(NamedTuple):
    """Groups of neighbouring decode rows; empty arrays if there are none."""

    group_rows: I32 = _NOTHING  # [D] at a group's first row how many it has, else 0
    shared_pages: I32 = _NOTHING  # [D] first pages that the row has in common with all of its group, or 0


class SharedPrefixes:
    """Finds the groups, whenever other rows decode than in the step before."""

    def __init__(self) -> None:
        self._rows: list[Request] = []
        self._common: dict[tuple[Request, Request], int] = {}  # pages of neighbours
        self._found = SharedPages()

    def of(self, rows: list[Request]) -> SharedPages:
        """The groups of `rows`. Call it for every step: what it remembers must not outlive a row's absence.

        New rows cost a search, others not: neighbours have the same pages in common as long as both decode.
        """
        if rows != self._rows:
            # of two rows that share, the later one found its prefix in the tree
            pairs = pairwise(rows) if any(row.num_cached_tokens for row in rows) else ()
            known = self._common
            self._common = {
                pair: common_pages(*pair) if (found := known.get(pair)) is None else found for pair in pairs
            }
            self._rows, self._found = rows, _groups_of(self._common.values())
        return self._found


def common_pages(one: Request, other: Request) -> int:
    """With how many pages two decode rows begin alike.

    Only pages of the tree are looked at. They are what can be shared, stay a row's as long as it decodes, and
    end before the page that its newest token goes to. A page has one place in the tree: rows that both have
    it there have the same pages before it. So the last is searched for by halves.
    """
    low, high = 0, min(one.num_tree_pages, other.num_tree_pages)
    while low < high:
        middle = (low + high + 1) // 2
        if one.pages[middle - 1] == other.pages[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def _groups_of(common: Collection[int]) -> SharedPages:
    runs = most_saving_runs(common)
    if not runs:
        return SharedPages()
    found = SharedPages(*np.zeros((2, len(common) + 1), np.int32))
    for first, rows, pages in runs:
        found.group_rows[first] = rows
        found.shared_pages[first : first + rows] = pages
    return found


Run = tuple[int, int, int]  # its first row, rows, pages that they share


class _Open(NamedTuple):
    """Rows from `first` on that have `pages` in common, while more may follow, and the best runs within."""

    pages: int
    first: int
    saved: int
    within: list[Run]


def most_saving_runs(common: Iterable[int]) -> list[Run]:
    """Disjoint runs (first row, rows, pages) of rows, each of which has `common` pages with the next.

    Runs nest as the tree does: a system prompt that all begin with, a document that some do. Of a run and
    those within it the one or the others are taken, whichever leave fewer pages to be read.
    """
    stack = [_Open(0, 0, 0, [])]
    for row, pages in enumerate([*common, 0]):
        if pages == stack[-1].pages:
            continue
        ended = _Open(pages, row, 0, [])
        while stack and stack[-1].pages >= pages:
            run = stack.pop()
            saved, within = run.saved + ended.saved, run.within + ended.within
            whole = (row - run.first) * run.pages  # by all of its rows but one
            if run.pages > pages and whole >= saved:
                saved, within = whole, [(run.first, row - run.first + 1, run.pages)]
            ended = _Open(pages, run.first, saved, within)
        stack.append(ended)
    return stack[0].within
