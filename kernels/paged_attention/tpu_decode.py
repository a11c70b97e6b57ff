"""First phase of the TPU kernel: decode rows."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .tpu_blocks import TAILS
from .tpu_program import (
    Program,
    Tiles,
    begin_softmax,
    block_of,
    clear_dead,
    enter_tile,
    finish_tiles,
    leave_tile,
    meet,
    softmax_result,
    start_tile,
)
from .tpu_stream import Cursor, Scalar, Walk, stream


def decode(p: Program) -> None:
    """Each decode row meets its pages; its new key and value join the last of them on the way."""
    rows, sizes, end_row = p.rows, p.sizes, p.rows.num_decode_rows

    def span(tile: Scalar, row: Scalar) -> tuple[Scalar, Scalar]:
        length = rows.kv_lens[row]
        return p.column(jnp.maximum(length - rows.window, 0)), p.column(length + p.page_size - 1)

    start = jnp.int32(0), jnp.int32(0)
    walk = Walk(*start, end_row, sizes.decode_pages, span, lambda tile, row: (tile, row + 1))

    def consume(at: Cursor, step: Scalar) -> None:
        tile, in_tile = lax.div(at.row, sizes.decode_rows), lax.rem(at.row, sizes.decode_rows)
        slot, first_key, is_last = p.pages.slot(step), at.first * p.page_size, walk.is_last(at)

        @pl.when((at.begins == 1) & (in_tile == 0))
        def _() -> None:
            enter_tile(_decode_tile(p), tile, (tile + 1) * sizes.decode_rows < end_row)

        @pl.when(at.begins == 1)
        def _() -> None:
            begin_softmax(p, 1)

        @pl.when(is_last)
        def _() -> None:
            index = at.end - at.first - 1
            _add_new(p, at.row, slot, index, p.pages.page_id(at, step, index))
            clear_dead(p, slot, sizes.decode_pages, rows.kv_lens[at.row] - first_key)

        _attend_row(p, at.row, slot, first_key)

        @pl.when(is_last)
        def _() -> None:
            out = p.scratch.decode_out
            for head in range(sizes.kv_heads):
                out[lax.rem(tile, 2), in_tile, head] = softmax_result(p, head, p.group).astype(out.dtype)

        @pl.when(is_last & ((in_tile == sizes.decode_rows - 1) | (at.row == end_row - 1)))
        def _() -> None:
            leave_tile(_decode_tile(p), tile)

    @pl.when(end_row > 0)
    def _() -> None:
        start_tile(_decode_tile(p), 0)

    stream(walk, p.pages, consume)
    finish_tiles(_decode_tile(p), pl.cdiv(end_row, sizes.decode_rows))

    @pl.loop(jnp.maximum(end_row - TAILS, 0), end_row)
    def _(row: Scalar) -> None:
        _tail_copy(p, row, 0, 0).wait()


def _attend_row(p: Program, row: Scalar, slot: Scalar, first_key: Scalar) -> None:
    sizes, length = p.sizes, p.rows.kv_lens[row]
    tile, in_tile = lax.div(row, sizes.decode_rows), lax.rem(row, sizes.decode_rows)
    key_at = first_key + lax.broadcasted_iota(jnp.int32, (1, sizes.decode_pages * p.page_size), 1)
    seen = (key_at < length) & (key_at >= length - p.rows.window)
    for head in range(sizes.kv_heads):
        q = p.scratch.decode_q[lax.rem(tile, 2), in_tile, head]
        meet(p, head, q, block_of(p, slot, head, sizes.decode_pages), seen, None)


def _tail_copy(p: Program, row: Scalar, page: Scalar, offset: Scalar) -> Any:
    slot = lax.rem(row, TAILS)
    target = p.pages.pool.at[page, p.pages.heads, pl.ds(pl.multiple_of(offset, p.tile_rows), p.tile_rows)]
    return pltpu.make_async_copy(p.scratch.tail.at[slot], target, p.scratch.tail_sems.at[slot])


def _add_new(p: Program, row: Scalar, slot: Scalar, index: Scalar, page: Scalar) -> None:
    """Put a decode row's new key and value into page `index` of its block, and into the pool."""
    offset = lax.rem(p.rows.kv_lens[row] - 1, p.page_size)
    inside = lax.rem(offset, p.tile_rows)
    offset = pl.multiple_of(offset - inside, p.tile_rows)
    tile = p.pages.ring.at[slot, index, :, pl.ds(offset, p.tile_rows)]
    old = tile[...].astype(jnp.float32)
    in_tile, parity = lax.rem(row, p.sizes.decode_rows), lax.rem(lax.div(row, p.sizes.decode_rows), 2)
    new = p.scratch.decode_kv[parity, in_tile].astype(jnp.float32)
    at = lax.broadcasted_iota(jnp.int32, old.shape, 1)
    joined = jnp.where(at == inside, new, old).astype(tile.dtype)
    tile[...] = joined

    @pl.when(row >= TAILS)
    def _() -> None:
        _tail_copy(p, row, 0, 0).wait()

    p.scratch.tail[lax.rem(row, TAILS)] = joined
    _tail_copy(p, row, page, offset).start()


def _decode_tile(p: Program) -> Tiles:
    s, size = p.scratch, p.sizes.decode_rows

    def come(turn: Scalar) -> list[Any]:
        slot, rows = lax.rem(turn, 2), pl.ds(turn * size, size)
        return [
            pltpu.make_async_copy(source.at[rows, p.pages.heads], target.at[slot], s.in_sems.at[slot])
            for source, target in ((p.decode_q, s.decode_q), (p.decode_kv, s.decode_kv))
        ]

    def go(turn: Scalar) -> Any:
        slot, target = lax.rem(turn, 2), p.decode_out.at[pl.ds(turn * size, size), p.pages.heads]
        return pltpu.make_async_copy(s.decode_out.at[slot], target, s.out_sems.at[slot])

    return Tiles(come, go)
