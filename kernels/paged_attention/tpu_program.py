"""What the phases of the TPU kernel share: one program's references, its softmax, its tiles of queries."""

from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .tpu_blocks import LANES, BlockSizes
from .tpu_stream import Pages, Scalar

MASKED = -1e30
LOG2_E = 1.4426950408889634  # scores are kept times this: a power of two is cheaper than one of e


class Rows(NamedTuple):
    """`RaggedRows` in scalar memory, two entries longer, so that a cursor may look past the last row."""

    cu_q_lens: Any
    kv_lens: Any
    num_rows: Scalar
    num_decode_rows: Scalar
    window: Scalar


class Scratch(NamedTuple):
    """VMEM and semaphores of one program, beside those of `Pages`. h: its KV heads."""

    decode_q: Any  # [2, decode_rows, h, group, lanes]
    decode_kv: Any  # [2, decode_rows, h, 1, 2 * head_dim]
    decode_out: Any  # like decode_q
    tail: Any  # [TAILS, h, tile rows, 2 * head_dim]: what decode rows write back
    prefill_q: Any  # [2, h, group, prefill_tokens, lanes]
    prefill_out: Any  # like prefill_q
    new_kv: Any  # [depth, h, tokens, 2 * head_dim]
    top: Any  # [h, group * prefill_tokens, LANES] largest score met, the same in all lanes
    total: Any  # [h, group * prefill_tokens, LANES] sum of 2 ** (score - top), spread over lanes
    acc: Any  # [h, group * prefill_tokens, lanes] the same sum, weighted by values
    in_sems: Any  # [2]
    out_sems: Any  # [2]
    tail_sems: Any  # [TAILS]
    new_sems: Any  # [depth]
    write_sem: Any  # [1]


@dataclass(frozen=True)
class Program:
    """One program: static choices, and references to what it reads and writes."""

    sizes: BlockSizes
    head_dim: int
    soft_cap: float | None
    has_sinks: bool
    rows: Rows
    pages: Pages
    factors: Any  # SMEM f32[2]: of scores and of values
    sinks: Any  # VMEM [h, group, LANES]
    decode_q: Any  # HBM [rows, kv_heads, group, lanes]
    decode_kv: Any  # HBM [rows, kv_heads, 1, 2 * head_dim]
    prefill_q: Any  # HBM [kv_heads, group, tokens, lanes]
    prefill_kv: Any  # HBM [kv_heads, front + tokens + back, 2 * head_dim]
    decode_out: Any
    prefill_out: Any
    scratch: Scratch

    @property
    def page_size(self) -> int:
        return self.pages.ring.shape[3]

    def column(self, key: Scalar) -> Scalar:
        """Of a row's page table, where key number `key` is found."""
        return lax.div(key, self.page_size)

    @property
    def group(self) -> int:
        return self.sinks.shape[1]

    @property
    def tile_rows(self) -> int:
        """Tokens of a page that are written together: a memory tile of the pool's dtype."""
        return self.scratch.tail.shape[2]

    def compute_dtype(self) -> Any:
        return self.scratch.prefill_q.dtype


# Softmax over the keys of one block


def begin_softmax(p: Program, repeat: int) -> None:
    """No key met yet by `repeat` tokens; a sink is there from the start."""
    for g in range(p.group):
        at = pl.ds(g * repeat, repeat)
        shape = (p.sizes.kv_heads, repeat, LANES)
        p.scratch.top[:, at] = jnp.broadcast_to(p.sinks[:, g : g + 1], shape)
        p.scratch.total[:, at] = jnp.full(shape, 1 / LANES if p.has_sinks else 0.0)
        p.scratch.acc[:, at] = jnp.zeros((*shape[:2], p.scratch.acc.shape[2]))


def meet(p: Program, head: Scalar, q: jax.Array, kv: jax.Array, seen: Any, member: Any) -> None:
    """Add a block of keys to a head's softmax.

    Args:
        q: [queries, lanes].
        kv: [keys, 2 * head_dim].
        seen: what each query sees of the keys, [queries or 1, keys] of bool; None if all see all.
        member: [queries, LANES], which queries are of the row at all; None if all are.
    """
    at = pl.ds(0, q.shape[0])
    keys, values = (kv, kv) if p.head_dim == 64 else (kv[:, : p.head_dim], kv[:, p.head_dim :])
    scores = _product(q, keys, 1) * p.factors[0]
    if p.soft_cap is not None:
        scores = p.soft_cap * LOG2_E * jnp.tanh(scores * (1 / p.soft_cap))
    if seen is not None:
        scores = jnp.where(seen, scores, MASKED)
    old_top, old_total, old_acc = p.scratch.top[head, at], p.scratch.total[head, at], p.scratch.acc[head, at]
    top = jnp.maximum(old_top, jnp.max(scores, axis=1, keepdims=True))
    weights = jnp.exp2(scores - _across(top, scores.shape[1]))
    fade = jnp.exp2(old_top - top)
    total = old_total * fade + _lane_sums(weights)
    acc = old_acc * _across(fade, old_acc.shape[1]) + _product(weights.astype(q.dtype), values, 0)
    if member is not None:
        # 0 * NaN: another row's broken values must not reach this one's tokens
        top, total = jnp.where(member, top, old_top), jnp.where(member, total, old_total)
        acc = jnp.where(_across(member, acc.shape[1]), acc, old_acc)
    p.scratch.top[head, at], p.scratch.total[head, at], p.scratch.acc[head, at] = top, total, acc


def softmax_result(p: Program, head: Scalar, queries: int) -> jax.Array:
    """What `queries` queries of a head have met, [queries, lanes] float32."""
    at = pl.ds(0, queries)
    total = jnp.maximum(jnp.sum(p.scratch.total[head, at], axis=1, keepdims=True), 1e-30)
    return p.scratch.acc[head, at] * (p.factors[1] / total)


def _product(x: jax.Array, y: jax.Array, y_axis: int) -> jax.Array:
    """Sum over the last axis of `x` and axis `y_axis` of `y`."""
    return lax.dot_general(
        x,
        y,
        (((1,), (y_axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _across(x: jax.Array, width: int) -> jax.Array:
    """[rows, width] of `x` [rows, LANES], whose lanes are alike: whole registers, nothing moves."""
    return x[:, :width] if width < LANES else jnp.concatenate([x] * (width // LANES), axis=1)


def _lane_sums(x: jax.Array) -> jax.Array:
    """[rows, LANES] whose sum over lanes is that of `x` [rows, width]."""
    if x.shape[1] < LANES:
        return jnp.broadcast_to(jnp.sum(x, axis=1, keepdims=True) / LANES, (x.shape[0], LANES))
    return reduce(jnp.add, (x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)))


def block_of(p: Program, slot: Scalar, head: Scalar, pages: int) -> jax.Array:
    """[pages * page_size, 2 * head_dim] of one head, in the dtype of products."""
    kv = p.pages.ring[slot, pl.ds(0, pages), head].astype(p.compute_dtype())
    return kv.reshape(pages * p.page_size, kv.shape[-1])


def clear_dead(p: Program, slot: Scalar, pages: int, live: Scalar) -> None:
    """Zero a block from its key number `live` on: what is there may be anything, and 0 * NaN is NaN."""
    ring, rows = p.pages.ring, p.tile_rows
    per_page = p.page_size // rows

    def tile(index: Scalar) -> Any:
        at = pl.multiple_of(lax.rem(index, per_page) * rows, rows)
        return ring.at[slot, lax.div(index, per_page), :, pl.ds(at, rows)]

    whole = pl.cdiv(live, rows)

    @pl.when(lax.rem(live, rows) > 0)
    def _() -> None:
        ref = tile(whole - 1)
        old = ref[...].astype(jnp.float32)
        at = lax.broadcasted_iota(jnp.int32, old.shape, 1)
        ref[...] = jnp.where(at < lax.rem(live, rows), old, 0.0).astype(ref.dtype)

    @pl.loop(whole, pages * per_page)
    def _(index: Scalar) -> None:
        ref = tile(index)
        ref[...] = jnp.zeros(ref.shape, ref.dtype)


# Tiles of queries come and tiles of results go, two of each at a time


class Tiles(NamedTuple):
    """Copies of tile number `turn`, described anew to start one and to wait for it."""

    come: Any  # turn -> list of copies
    go: Any  # turn -> copy


def start_tile(tiles: Tiles, turn: Scalar) -> None:
    """Send for a tile's queries."""
    for copy in tiles.come(turn):
        copy.start()


def enter_tile(tiles: Tiles, turn: Scalar, more: Scalar) -> None:
    """Wait for a tile's queries and for room for its results; send for the next."""

    @pl.when(more)
    def _() -> None:
        start_tile(tiles, turn + 1)

    for copy in tiles.come(turn):
        copy.wait()

    @pl.when(turn >= 2)
    def _() -> None:
        tiles.go(turn).wait()


def leave_tile(tiles: Tiles, turn: Scalar) -> None:
    """Send a tile's results off."""
    tiles.go(turn).start()


def finish_tiles(tiles: Tiles, turns: Scalar) -> None:
    """Wait until the results of all `turns` tiles have arrived."""

    @pl.loop(jnp.maximum(turns - 2, 0), turns)
    def _(turn: Scalar) -> None:
        tiles.go(turn).wait()
