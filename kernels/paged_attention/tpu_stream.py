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
    """One step of a walk: block number `block` of the pages of `row` that query tile `tile` meets."""

    tile: Scalar
    row: Scalar
    block: Scalar


class Span(NamedTuple):
    """Columns `first` to `end` of a row's page table."""

    first: Scalar
    end: Scalar


@dataclass(frozen=True)
class Walk:
    """The order in which one phase of the kernel meets blocks of pages."""

    start: Cursor
    end_row: Scalar
    pages: int  # in a block
    span: Callable[[Cursor], Span]
    next_tile: Callable[[Cursor], tuple[Scalar, Scalar]]  # the tile and row after the cursor's

    def num_blocks(self, at: Cursor) -> Scalar:
        """Blocks that the tile of `at` meets in its row."""
        first, end = self.span(at)
        return pl.cdiv(end - first, self.pages)

    def columns(self, at: Cursor) -> Span:
        """The columns of the block at the cursor."""
        first, end = self.span(at)
        first += at.block * self.pages
        return Span(first, jnp.minimum(first + self.pages, end))

    def after(self, at: Cursor) -> Cursor:
        """The next step."""
        tile, row = self.next_tile(at)
        more = at.block + 1 < self.num_blocks(at)
        return Cursor(
            jnp.where(more, at.tile, tile),
            jnp.where(more, at.row, row),
            jnp.where(more, at.block + 1, 0),
        )


class Pages(NamedTuple):
    """The pool, the page table, and where their pieces arrive."""

    pool: Any  # HBM [pages, kv_heads, page_size, 2 * head_dim]
    table: Any  # HBM [pieces, 1, LANES]
    offsets: Any  # SMEM [rows + 1]: where each row's table begins
    first_page: Scalar  # of the layer
    heads: Any  # slice of the KV heads of this program
    ring: Any  # VMEM [depth, pages, kv_heads, page_size, 2 * head_dim]
    ids: Any  # SMEM [depth + 1, pieces, 1, LANES]
    ring_sems: Any  # [depth]
    ids_sems: Any  # [depth + 1]

    def _table_piece(self, walk: Walk, at: Cursor, step: Scalar) -> Any:
        entry = self.offsets[at.row] + walk.columns(at).first
        slot = lax.rem(step, self.ids.shape[0])
        pieces = self.table.at[pl.ds(entry // LANES, self.ids.shape[1])]
        return pltpu.make_async_copy(pieces, self.ids.at[slot], self.ids_sems.at[slot])

    def page_id(self, walk: Walk, at: Cursor, step: Scalar, index: Scalar) -> Scalar:
        """The page in the pool of the block's page number `index`."""
        entry = self.offsets[at.row] + walk.columns(at).first
        entry = lax.rem(entry, LANES) + index
        slot = lax.rem(step, self.ids.shape[0])
        return self.first_page + self.ids[slot, entry // LANES, 0, lax.rem(entry, LANES)]

    def _page_copy(self, page: Scalar, slot: Scalar, index: Scalar) -> Any:
        source = self.pool.at[page, self.heads]
        return pltpu.make_async_copy(source, self.ring.at[slot, index], self.ring_sems.at[slot])

    def start_table(self, walk: Walk, at: Cursor, step: Scalar) -> None:
        """Send for the page numbers of a block."""
        self._table_piece(walk, at, step).start()

    def start_pages(self, walk: Walk, at: Cursor, step: Scalar) -> None:
        """Send for a block, once its page numbers are there."""
        self._table_piece(walk, at, step).wait()
        first, end = walk.columns(at)
        slot = lax.rem(step, self.ring.shape[0])

        @pl.loop(0, end - first)
        def _(index: Scalar) -> None:
            self._page_copy(self.page_id(walk, at, step, index), slot, index).start()

    def wait_pages(self, walk: Walk, at: Cursor, step: Scalar) -> None:
        """Wait until a block is there."""
        first, end = walk.columns(at)
        slot = lax.rem(step, self.ring.shape[0])

        @pl.loop(0, end - first)
        def _(index: Scalar) -> None:
            self._page_copy(0, slot, index).wait()


def num_pieces(pages: int) -> int:
    """Pieces of LANES table entries that hold any `pages` entries in a row."""
    return pl.cdiv(LANES - 1 + pages, LANES)


def stream(
    walk: Walk,
    pages: Pages,
    consume: Callable[[Cursor, Scalar], None],
    also_start: Callable[[Cursor, Scalar], None] = lambda at, step: None,
) -> None:
    """Call `consume(cursor, step)` at each step of a walk, with its block in `pages.ring[step % depth]`.

    In turn `i`, step `i` sends for its page numbers, step `i - 1` for its pages (and whatever
    `also_start` sends for), and step `i - depth` is consumed.
    """
    depth = pages.ring.shape[0]

    def turn(state: tuple[Scalar, Cursor, Cursor, Cursor]) -> tuple[Scalar, Cursor, Cursor, Cursor]:
        i, numbered, fetched, here = state

        @pl.when(numbered.row < walk.end_row)
        def _() -> None:
            pages.start_table(walk, numbered, i)

        @pl.when((i >= 1) & (fetched.row < walk.end_row))
        def _() -> None:
            pages.start_pages(walk, fetched, i - 1)
            also_start(fetched, i - 1)

        @pl.when(i >= depth)
        def _() -> None:
            pages.wait_pages(walk, here, i - depth)
            consume(here, i - depth)

        return (
            i + 1,
            _step(walk, numbered, numbered.row < walk.end_row),
            _step(walk, fetched, (i >= 1) & (fetched.row < walk.end_row)),
            _step(walk, here, i >= depth),
        )

    start = (jnp.int32(0), walk.start, walk.start, walk.start)
    lax.while_loop(lambda state: state[3].row < walk.end_row, turn, start)


def _step(walk: Walk, at: Cursor, go: Scalar) -> Cursor:
    return Cursor(*(jnp.where(go, new, old) for new, old in zip(walk.after(at), at, strict=True)))
