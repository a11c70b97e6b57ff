"""Pages from HBM to VMEM, several blocks ahead of the computation that meets them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .tpu_blocks import LANES

Scalar = Any  # an int32 on the scalar core


class Cursor(NamedTuple):
    """One step of a walk: query tile `tile` meets a block of the pages of `row`."""

    tile: Scalar
    row: Scalar
    begins: Scalar  # 1 at the first block that the tile meets of the row
    first: Scalar  # column of the row's page table where the block begins
    end: Scalar  # column after the last one that the tile meets


@dataclass(frozen=True)
class Walk:
    """The order in which one phase of the kernel meets blocks of pages."""

    tile: Scalar  # where it starts
    row: Scalar
    end_row: Scalar
    pages: int  # in a block
    span: Callable[[Scalar, Scalar], tuple[Scalar, Scalar]]  # (tile, row) -> columns first, end
    next_tile: Callable[[Scalar, Scalar], tuple[Scalar, Scalar]]  # (tile, row) -> those after them

    def start(self) -> Cursor:
        """The first step."""
        return Cursor(self.tile, self.row, jnp.int32(1), *self.span(self.tile, self.row))

    def after(self, at: Cursor) -> Cursor:
        """The next step."""
        tile, row = self.next_tile(at.tile, at.row)
        last = self.is_last(at)
        first, end = self.span(tile, row)
        following = Cursor(tile, row, jnp.int32(1), first, end)
        same = at._replace(begins=jnp.int32(0), first=at.first + self.pages)
        return Cursor(*(jnp.where(last, new, old) for new, old in zip(following, same, strict=True)))

    def is_last(self, at: Cursor) -> Scalar:
        """Whether the block is the last one that the tile meets of the row."""
        return at.first + self.pages >= at.end

    def count(self, at: Cursor) -> Scalar:
        """Pages of the block."""
        return jnp.minimum(at.end - at.first, self.pages)


class Pages(NamedTuple):
    """The pool, the page table, and where their pieces arrive."""

    pool: Any  # HBM [pages, kv_heads, page_size, 2 * head_dim]
    table: Any  # HBM [pieces, 1, LANES]
    offsets: Any  # SMEM [rows + 1]: where each row's table begins
    first_page: Scalar  # of the layer
    heads: Any  # slice of the KV heads of this program
    ring: Any  # VMEM [depth, pages, kv_heads, page_size, 2 * head_dim]
    ids: Any  # SMEM [depth + 1, pieces, 1, LANES]
    plan: Any  # SMEM [depth + 1, fields of Cursor]: the steps whose blocks are on their way
    ring_sems: Any  # [depth]
    ids_sems: Any  # [depth + 1]

    def slot(self, step: Scalar) -> Scalar:
        """Where the block of a step is in `ring`."""
        return lax.rem(step, self.ring.shape[0])

    def page_id(self, at: Cursor, step: Scalar, index: Scalar) -> Scalar:
        """The page in the pool of the block's page number `index`."""
        entry = ((self.offsets[at.row] + at.first) & (LANES - 1)) + index
        return self.first_page + self.ids[self._ahead(step), entry >> 7, 0, entry & (LANES - 1)]

    def planned(self, step: Scalar) -> Cursor:
        """What `start_table` was told."""
        slot = self._ahead(step)
        return Cursor(*(self.plan[slot, field] for field in range(len(Cursor._fields))))

    def start_table(self, at: Cursor, step: Scalar) -> None:
        """Note a step and send for its page numbers."""
        slot = self._ahead(step)
        for field, value in enumerate(at):
            self.plan[slot, field] = value
        self._table_copy(self.offsets[at.row] + at.first, slot).start()

    def start_pages(self, walk: Walk, step: Scalar) -> None:
        """Send for a block, once its page numbers are there."""
        at, slot = self.planned(step), self.slot(step)
        self._table_copy(0, self._ahead(step)).wait()
        for_each(
            walk.count(at), lambda index: self._page_copy(self.page_id(at, step, index), slot, index).start()
        )

    def wait_pages(self, walk: Walk, at: Cursor, step: Scalar) -> None:
        """Wait until a block is there."""
        slot, count = self.slot(step), walk.count(at)

        @pl.when(count == walk.pages)
        def _() -> None:
            block = self.ring.at[slot, pl.ds(0, walk.pages)]
            pltpu.make_async_copy(block, block, self.ring_sems.at[slot]).wait()

        @pl.when(count < walk.pages)
        def _() -> None:
            for_each(count, lambda index: self._page_copy(0, slot, index).wait())

    def _ahead(self, step: Scalar) -> Scalar:
        return lax.rem(step, self.ids.shape[0])

    def _table_copy(self, entry: Scalar, slot: Scalar) -> Any:
        pieces = self.table.at[pl.ds(entry >> 7, self.ids.shape[1])]
        return pltpu.make_async_copy(pieces, self.ids.at[slot], self.ids_sems.at[slot])

    def _page_copy(self, page: Scalar, slot: Scalar, index: Scalar) -> Any:
        source = self.pool.at[page, self.heads]
        return pltpu.make_async_copy(source, self.ring.at[slot, index], self.ring_sems.at[slot])


def num_pieces(pages: int) -> int:
    """Pieces of LANES table entries that hold any `pages` entries in a row."""
    return pl.cdiv(LANES - 1 + pages, LANES)


def for_each(count: Scalar, body: Callable[[Scalar], None]) -> None:
    """Call `body` with 0 .. count - 1, four at a time, so that their scalar work overlaps."""

    @pl.loop(0, count >> 2)
    def _(four: Scalar) -> None:
        for index in range(4):
            body(four * 4 + index)

    @pl.loop(count & ~3, count)
    def _(index: Scalar) -> None:
        body(index)


def stream(
    walk: Walk,
    pages: Pages,
    consume: Callable[[Cursor, Scalar], None],
    also_start: Callable[[Cursor, Scalar], None] = lambda at, step: None,
) -> None:
    """Call `consume(cursor, step)` at each step of a walk, with its block in `pages.ring[pages.slot(step)]`.

    In turn `i`, step `i` sends for its page numbers, step `i - 1` for its pages (and whatever
    `also_start` sends for), and step `i - depth` is consumed.
    """
    depth = pages.ring.shape[0]

    def turn(state: tuple[Scalar, Scalar, Cursor]) -> tuple[Scalar, Scalar, Cursor]:
        i, planned, at = state
        more = at.row < walk.end_row

        @pl.when(more)
        def _() -> None:
            pages.start_table(at, i)

        @pl.when((i >= 1) & (i <= planned))
        def _() -> None:
            pages.start_pages(walk, i - 1)
            also_start(pages.planned(i - 1), i - 1)

        @pl.when(i >= depth)
        def _() -> None:
            here = pages.planned(i - depth)
            pages.wait_pages(walk, here, i - depth)
            consume(here, i - depth)

        following = walk.after(at)
        at = Cursor(*(jnp.where(more, new, old) for new, old in zip(following, at, strict=True)))
        return i + 1, jnp.where(more, i + 1, planned), at

    def unfinished(state: tuple[Scalar, Scalar, Cursor]) -> Scalar:
        i, planned, at = state
        return (at.row < walk.end_row) | (i < planned + depth)

    @pl.when(walk.row < walk.end_row)
    def _() -> None:
        lax.while_loop(unfinished, turn, (jnp.int32(0), jnp.int32(0), walk.start()))
