"""Second and third phase of the TPU kernel: prefill chunks are written, then attended."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

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
from .tpu_stream import Cursor, Scalar, Span, Walk, stream


def _chunk_start(p: Program, row: Scalar) -> Scalar:
    """Position in its request of a row's first token of this step."""
    return p.rows.kv_lens[row] - (p.rows.cu_q_lens[row + 1] - p.rows.cu_q_lens[row])


def write_chunks(p: Program) -> None:
    """Write the new keys and values of prefill chunks into their pages, before any of them is read."""
    sizes, rows, slack = p.sizes, p.rows, p.scratch.new_kv.shape[2] - p.sizes.write_pages * p.page_size

    def span(at: Cursor) -> Span:
        first = lax.div(_chunk_start(p, at.row), p.page_size)
        return Span(first, pl.cdiv(rows.kv_lens[at.row], p.page_size))

    walk = Walk(
        start=Cursor(jnp.int32(0), rows.num_decode_rows, jnp.int32(0)),
        end_row=rows.num_rows,
        pages=sizes.write_pages,
        span=span,
        next_tile=lambda at: (at.tile, at.row + 1),
    )

    def source(at: Cursor) -> Scalar:
        """Where in `prefill_kv` the token stands that belongs to the first key of the block."""
        first_key = walk.columns(at).first * p.page_size
        return p.page_size + rows.cu_q_lens[at.row] + first_key - _chunk_start(p, at.row)

    def new_copy(at: Cursor, step: Scalar) -> Any:
        slot, start = lax.rem(step, sizes.depth), source(at)
        start = pl.multiple_of(start - lax.rem(start, slack), slack)
        tokens = p.prefill_kv.at[p.pages.heads, pl.ds(start, p.scratch.new_kv.shape[2])]
        return pltpu.make_async_copy(tokens, p.scratch.new_kv.at[slot], p.scratch.new_sems.at[slot])

    def write_copy(at: Cursor, step: Scalar, index: Scalar) -> Any:
        target = p.pages.pool.at[p.pages.page_id(walk, at, step, index), p.pages.heads]
        return pltpu.make_async_copy(
            p.pages.ring.at[lax.rem(step, sizes.depth), index], target, p.scratch.write_sem.at[0]
        )

    def consume(at: Cursor, step: Scalar) -> None:
        new_copy(at, step).wait()
        slot, columns = lax.rem(step, sizes.depth), walk.columns(at)
        shift = lax.rem(source(at), slack)

        @pl.loop(0, columns.end - columns.first)
        def _(index: Scalar) -> None:
            first_key = (columns.first + index) * p.page_size
            wanted = _chunk_start(p, at.row), rows.kv_lens[at.row]
            _join(p, slot, index, shift, slack, wanted[0] - first_key, wanted[1] - first_key)
            write_copy(at, step, index).start()

        @pl.loop(0, columns.end - columns.first)
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

    def span(at: Cursor) -> Span:
        begin = jnp.maximum(at.tile * size, rows.cu_q_lens[at.row])
        end = jnp.minimum((at.tile + 1) * size, rows.cu_q_lens[at.row + 1])
        first = jnp.maximum(position(at.row, begin) + 1 - rows.window, 0)
        return Span(lax.div(first, p.page_size), pl.cdiv(position(at.row, end), p.page_size))

    def next_tile(at: Cursor) -> tuple[Scalar, Scalar]:
        end = rows.cu_q_lens[at.row + 1]
        same_row = end > (at.tile + 1) * size
        return jnp.where(same_row, at.tile + 1, lax.div(end, size)), jnp.where(same_row, at.row, at.row + 1)

    walk = Walk(Cursor(first_tile, first_row, jnp.int32(0)), end_row, sizes.prefill_pages, span, next_tile)
    last_tile = lax.div(rows.cu_q_lens[end_row] - 1, size)

    def consume(at: Cursor, step: Scalar) -> None:
        begin, end = rows.cu_q_lens[at.row], rows.cu_q_lens[at.row + 1]
        turn = at.tile - first_tile
        slot, columns = lax.rem(step, sizes.depth), walk.columns(at)
        first_key = columns.first * p.page_size
        is_last = at.block + 1 == walk.num_blocks(at)

        @pl.when((at.block == 0) & ((begin <= at.tile * size) | (at.row == first_row)))
        def _() -> None:
            enter_tile(_prefill_tile(p, first_tile), turn, at.tile < last_tile)
            begin_softmax(p, size)

        @pl.when(is_last)
        def _() -> None:
            live = jnp.minimum(rows.kv_lens[at.row], columns.end * p.page_size) - first_key
            clear_dead(p, slot, sizes.prefill_pages, live)

        _attend_tile(p, at, slot, lax.rem(turn, 2), first_key)

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


def _attend_tile(p: Program, at: Cursor, slot: Scalar, parity: Scalar, first_key: Scalar) -> None:
    rows, sizes, size = p.rows, p.sizes, p.sizes.prefill_tokens
    queries, keys = p.group * size, sizes.prefill_pages * p.page_size
    token = at.tile * size + lax.rem(lax.broadcasted_iota(jnp.int32, (queries, 1), 0), size)
    member = (token >= rows.cu_q_lens[at.row]) & (token < rows.cu_q_lens[at.row + 1])
    query_at = rows.kv_lens[at.row] - rows.cu_q_lens[at.row + 1] + token
    key_at = first_key + lax.broadcasted_iota(jnp.int32, (1, keys), 1)

    @pl.loop(0, sizes.kv_heads)
    def _(head: Scalar) -> None:
        q = p.scratch.prefill_q[parity, head]
        seen = (key_at <= query_at) & (key_at > query_at - rows.window)
        q = q.reshape(queries, q.shape[-1])
        meet(p, head, q, block_of(p, slot, head, sizes.prefill_pages), seen, member)


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
