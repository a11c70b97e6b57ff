"""Second and third phase of the TPU kernel: prefill chunks are written, then attended."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .tpu_blocks import LANES
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


def _chunk_start(p: Program, row: Scalar) -> Scalar:
    """Position in its request of a row's first token of this step."""
    return p.rows.kv_lens[row] - (p.rows.cu_q_lens[row + 1] - p.rows.cu_q_lens[row])


def write_chunks(p: Program) -> None:
    """Write the new keys and values of prefill chunks into their pages, before any of them is read."""
    sizes, rows, slack = p.sizes, p.rows, p.scratch.new_kv.shape[2] - p.sizes.write_pages * p.page_size

    def span(tile: Scalar, row: Scalar) -> tuple[Scalar, Scalar]:
        return p.column(_chunk_start(p, row)), p.column(rows.kv_lens[row] + p.page_size - 1)

    start = jnp.int32(0), rows.num_decode_rows
    walk = Walk(*start, rows.num_rows, sizes.write_pages, span, lambda tile, row: (tile, row + 1))

    def source(at: Cursor) -> Scalar:
        """Where in `prefill_kv` the token stands that belongs to the first key of the block."""
        return (1 + at.first) * p.page_size + rows.cu_q_lens[at.row] - _chunk_start(p, at.row)

    def new_copy(at: Cursor, step: Scalar) -> Any:
        slot, start = p.pages.slot(step), source(at)
        start = pl.multiple_of(start - lax.rem(start, slack), slack)
        tokens = p.prefill_kv.at[p.pages.heads, pl.ds(start, p.scratch.new_kv.shape[2])]
        return pltpu.make_async_copy(tokens, p.scratch.new_kv.at[slot], p.scratch.new_sems.at[slot])

    def write_copy(at: Cursor, step: Scalar, index: Scalar) -> Any:
        target = p.pages.pool.at[p.pages.page_id(at, step, index), p.pages.heads]
        return pltpu.make_async_copy(
            p.pages.ring.at[p.pages.slot(step), index], target, p.scratch.write_sem.at[0]
        )

    def consume(at: Cursor, step: Scalar) -> None:
        new_copy(at, step).wait()
        shift = lax.rem(source(at), slack)
        wanted = _chunk_start(p, at.row), rows.kv_lens[at.row]

        @pl.loop(0, walk.count(at))
        def _(index: Scalar) -> None:
            first_key = (at.first + index) * p.page_size
            _join(p, p.pages.slot(step), index, shift, slack, wanted[0] - first_key, wanted[1] - first_key)
            write_copy(at, step, index).start()

        @pl.loop(0, walk.count(at))
        def _(index: Scalar) -> None:
            write_copy(at, step, index).wait()

    stream(walk, p.pages, consume, lambda at, step: new_copy(at, step).start())


def _join(
    p: Program, slot: Scalar, index: Scalar, shift: Scalar, slack: int, begin: Scalar, end: Scalar
) -> None:
    """Put new tokens over the keys `begin` to `end` of page `index` of a block."""
    source = pl.ds(pl.multiple_of(index * p.page_size, slack), p.page_size + slack)

    @pl.loop(0, p.sizes.kv_heads)
    def _(head: Scalar) -> None:
        new = p.scratch.new_kv[slot, head, source].astype(jnp.float32)
        new = pltpu.roll(new, lax.rem(new.shape[0] - shift, new.shape[0]), 0)[: p.page_size]
        page = p.pages.ring.at[slot, index, head]
        at = lax.broadcasted_iota(jnp.int32, new.shape, 0)
        old = page[...].astype(jnp.float32)
        page[...] = jnp.where((at >= begin) & (at < end), new, old).astype(page.dtype)


def prefill(p: Program) -> None:
    """Attention of chunks, in tiles of tokens; a tile meets each of its rows in turn."""
    rows, sizes, size = p.rows, p.sizes, p.sizes.prefill_tokens
    first_row, end_row = rows.num_decode_rows, rows.num_rows
    first_tile = lax.div(rows.cu_q_lens[first_row], size)

    def position(row: Scalar, token: Scalar) -> Scalar:
        return rows.kv_lens[row] - rows.cu_q_lens[row + 1] + token

    def span(tile: Scalar, row: Scalar) -> tuple[Scalar, Scalar]:
        begin = position(row, jnp.maximum(tile * size, rows.cu_q_lens[row]))
        end = position(row, jnp.minimum((tile + 1) * size, rows.cu_q_lens[row + 1]))
        return p.column(jnp.maximum(begin + 1 - rows.window, 0)), p.column(end + p.page_size - 1)

    def next_tile(tile: Scalar, row: Scalar) -> tuple[Scalar, Scalar]:
        end = rows.cu_q_lens[row + 1]
        same_row = end > (tile + 1) * size
        return jnp.where(same_row, tile + 1, lax.div(end, size)), jnp.where(same_row, row, row + 1)

    walk = Walk(first_tile, first_row, end_row, sizes.prefill_pages, span, next_tile)
    last_tile = lax.div(rows.cu_q_lens[end_row] - 1, size)

    def consume(at: Cursor, step: Scalar) -> None:
        begin, end = rows.cu_q_lens[at.row], rows.cu_q_lens[at.row + 1]
        turn, slot, is_last = at.tile - first_tile, p.pages.slot(step), walk.is_last(at)

        @pl.when((at.begins == 1) & ((begin <= at.tile * size) | (at.row == first_row)))
        def _() -> None:
            enter_tile(_prefill_tile(p, first_tile), turn, at.tile < last_tile)
            begin_softmax(p, size)

        @pl.when(is_last)
        def _() -> None:
            live = jnp.minimum(rows.kv_lens[at.row], at.end * p.page_size) - at.first * p.page_size
            clear_dead(p, slot, sizes.prefill_pages, live)

        _attend_tile(p, at, slot, lax.rem(turn, 2))

        @pl.when(is_last & ((end >= (at.tile + 1) * size) | (at.row == end_row - 1)))
        def _() -> None:
            out = p.scratch.prefill_out

            @pl.loop(0, sizes.kv_heads)
            def _(head: Scalar) -> None:
                result = softmax_result(p, head, p.group * size).astype(out.dtype)
                out[lax.rem(turn, 2), head] = result.reshape(p.group, size, result.shape[-1])

            leave_tile(_prefill_tile(p, first_tile), turn)

    start_tile(_prefill_tile(p, first_tile), 0)
    stream(walk, p.pages, consume)
    finish_tiles(_prefill_tile(p, first_tile), last_tile - first_tile + 1)


def _attend_tile(p: Program, at: Cursor, slot: Scalar, parity: Scalar) -> None:
    """A tile meets a block. Most blocks of a long request need no mask: every token sees every key."""
    rows, sizes, size = p.rows, p.sizes, p.sizes.prefill_tokens
    queries, keys = p.group * size, sizes.prefill_pages * p.page_size
    begin, end, first_key = rows.cu_q_lens[at.row], rows.cu_q_lens[at.row + 1], at.first * p.page_size
    first_token, past = at.tile * size, rows.kv_lens[at.row] - end  # position of a token = past + token

    def attend(seen: Any, member: Any) -> None:
        @pl.loop(0, sizes.kv_heads)
        def _(head: Scalar) -> None:
            q = p.scratch.prefill_q[parity, head].reshape(queries, p.scratch.prefill_q.shape[-1])
            meet(p, head, q, block_of(p, slot, head, sizes.prefill_pages), seen, member)

    whole = (begin <= first_token) & (first_token + size <= end)
    whole &= first_key + keys <= past + first_token + 1
    whole &= first_key > past + first_token + size - 1 - rows.window

    @pl.when(whole)
    def _() -> None:
        attend(None, None)

    @pl.when(~whole)
    def _() -> None:
        token = first_token + lax.rem(lax.broadcasted_iota(jnp.int32, (queries, 1), 0), size)
        key_at = first_key + lax.broadcasted_iota(jnp.int32, (1, keys), 1)
        seen = (key_at <= past + token) & (key_at > past + token - rows.window)
        token = jnp.broadcast_to(token, (queries, LANES))
        attend(seen, (token >= begin) & (token < end))


def _prefill_tile(p: Program, first_tile: Scalar) -> Tiles:
    s, size = p.scratch, p.sizes.prefill_tokens

    def tokens(turn: Scalar) -> Any:
        return pl.ds(pl.multiple_of((first_tile + turn) * size, size), size)

    def come(turn: Scalar) -> list[Any]:
        slot, source = lax.rem(turn, 2), p.prefill_q.at[p.pages.heads, :, tokens(turn)]
        return [pltpu.make_async_copy(source, s.prefill_q.at[slot], s.in_sems.at[slot])]

    def go(turn: Scalar) -> Any:
        slot, target = lax.rem(turn, 2), p.prefill_out.at[p.pages.heads, :, tokens(turn)]
        return pltpu.make_async_copy(s.prefill_out.at[slot], target, s.out_sems.at[slot])

    return Tiles(come, go)
