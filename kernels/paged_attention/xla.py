"""Ragged paged attention in plain XLA: what serves on CPU, and a second opinion on other devices.

Rows go one after another: a decode row as a tile of one query, a prefill chunk in tiles of many. Each
meets its pages in turns that fit a CPU's caches, as many as it needs and no longer than its own
context, and keeps a running softmax, so that memory does not grow with the context.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .rows import RaggedRows

QUERY_TILE = 128  # tokens of a prefill chunk attended at once
PREFILL_KEYS, DECODE_KEYS = 256, 128  # keys that a tile meets in one turn
MASKED = -1e30
NO_WINDOW = 1 << 30


class _Layer(NamedTuple):
    """What both loops need of the layer: its pages, and which keys count. Queries come scaled."""

    kv_pages: jax.Array
    first_page: jax.Array
    window: jax.Array
    soft_cap: float | None
    sinks: jax.Array | None  # [kv_heads, group]

    @property
    def page_size(self) -> int:
        return self.kv_pages.shape[2]

    def gather(self, pages: jax.Array) -> jax.Array:
        """What `pages` [n] hold: [kv_heads, n * page_size, 2 * head_dim] float32."""
        kv = self.kv_pages[pages + self.first_page].astype(jnp.float32).swapaxes(0, 1)
        return kv.reshape(kv.shape[0], -1, kv.shape[3])

    def mask(self, scores: jax.Array, query_at: jax.Array, key_at: jax.Array) -> jax.Array:
        """Cap `scores` and hide the keys that come after the query or before its window."""
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        seen = (key_at <= query_at) & (key_at > query_at - self.window)
        return jnp.where(seen, scores, MASKED)


class _Softmax(NamedTuple):
    """A softmax-weighted sum over the keys met so far."""

    top: jax.Array  # [kv_heads, queries] largest score
    total: jax.Array  # [kv_heads, queries] sum of exp(score - top)
    acc: jax.Array  # [kv_heads, queries, 2 * head_dim] the same sum, weighted by keys and values

    @staticmethod
    def empty(shape: tuple[int, ...], sinks: jax.Array | None) -> "_Softmax":
        """No key met yet; a sink, [kv_heads, queries], is there from the start."""
        acc = jnp.zeros(shape)
        if sinks is None:
            return _Softmax(jnp.full(shape[:-1], MASKED), jnp.zeros(shape[:-1]), acc)
        return _Softmax(sinks.astype(jnp.float32), jnp.ones(shape[:-1]), acc)

    def result(self) -> jax.Array:
        return self.acc / jnp.maximum(self.total, 1e-30)[..., None]


def _meet(seen: _Softmax, scores: jax.Array, kv: jax.Array) -> _Softmax:
    """Add keys to a running softmax: `scores` [kv_heads, queries, keys], MASKED where not to be seen."""
    top = jnp.maximum(seen.top, scores.max(-1))
    # a query that has met no key yet has top == MASKED, where exp(MASKED - MASKED) would count as 1
    weights = jnp.where(scores == MASKED, 0.0, jnp.exp(scores - top[..., None]))
    fade = jnp.exp(seen.top - top)
    acc = seen.acc * fade[..., None] + jnp.einsum("hqt,htd->hqd", weights, kv)
    return _Softmax(top, seen.total * fade + weights.sum(-1), acc)


def ragged_paged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv_pages: jax.Array,
    rows: RaggedRows,
    *,
    first_page: jax.Array | int = 0,
    scale: float,
    window: jax.Array | int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    k_scale: jax.Array | float = 1.0,
    v_scale: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Write this step's keys and values into their pages, then let each token attend causally.

    Arguments and results as in `reference.py`; `first_page` and `window` may be traced, so that one
    scanned layer body serves all layers. The result's rows of tokens that belong to no row are
    unspecified but finite. The output has q's dtype; sums are float32.
    """
    page_size, kv_heads = kv_pages.shape[2], kv_pages.shape[1]
    kv = jnp.concatenate([stored(k, k_scale, kv_pages.dtype), stored(v, v_scale, kv_pages.dtype)], axis=-1)
    page, offset = jnp.divmod(rows.kv_slots, page_size)
    kv_pages = kv_pages.at[page + first_page, :, offset].set(kv)

    window = jnp.asarray(NO_WINDOW if window is None else window, jnp.int32)
    tokens, heads, head_dim = q.shape
    if sinks is not None:
        sinks = sinks.reshape(kv_heads, heads // kv_heads)
    layer = _Layer(kv_pages, jnp.asarray(first_page, jnp.int32), window, soft_cap, sinks)
    grouped = q.astype(jnp.float32).reshape(tokens, kv_heads, heads // kv_heads, head_dim)
    grouped *= scale * k_scale
    out = _attend(grouped, rows, layer) * v_scale
    return out.reshape(q.shape).astype(q.dtype), kv_pages


def stored(x: jax.Array, scale: jax.Array | float, dtype: jnp.dtype) -> jax.Array:
    """x / scale as the pool holds it: rounded, and within the range of a one-byte dtype."""
    if jnp.dtype(dtype).itemsize > 1:
        return (x / scale).astype(dtype)
    x = x.astype(jnp.float32) / scale
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.clip(jnp.rint(x), -127, 127).astype(dtype)
    largest = float(jnp.finfo(dtype).max)
    return jnp.clip(x, -largest, largest).astype(dtype)


def _attend(q: jax.Array, rows: RaggedRows, layer: _Layer) -> jax.Array:
    """Attention of q [tokens, kv_heads, group, head_dim]: decode rows one by one, then chunks by tiles."""
    tokens = q.shape[0]
    pad = ((0, min(QUERY_TILE, tokens)), (0, 0), (0, 0), (0, 0))
    q = jnp.pad(q, pad)
    out = jnp.zeros_like(q)
    out = _attend_rows(q, out, rows, layer, jnp.int32(0), rows.num_decode_rows, 1)
    return _attend_rows(q, out, rows, layer, rows.num_decode_rows, rows.num_rows, pad[0][1])[:tokens]


def _attend_rows(
    q: jax.Array, out: jax.Array, rows: RaggedRows, layer: _Layer, first: jax.Array, end: jax.Array, tile: int
) -> jax.Array:
    """Attention of the rows from `first` to `end`, in tiles of so many queries, written over `out`.

    Tiles are taken in token order. A row's last tile may reach into tokens of later rows; what it
    writes there is overwritten by the tiles of those rows.
    """

    def attend(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        row, offset, out = state
        start, length = rows.cu_q_lens[row] + offset, rows.cu_q_lens[row + 1] - rows.cu_q_lens[row]
        position = rows.kv_lens[row] - length + offset
        queries = lax.dynamic_slice_in_dim(q, start, tile)
        done = _attend_tile(queries, position, rows, row, layer)
        out = lax.dynamic_update_slice_in_dim(out, done, start, 0)
        ended = offset + tile >= length
        return jnp.where(ended, row + 1, row), jnp.where(ended, 0, offset + tile), out

    return lax.while_loop(lambda state: state[0] < end, attend, (first, jnp.int32(0), out))[2]


def _attend_tile(
    q: jax.Array, position: jax.Array, rows: RaggedRows, row: jax.Array, layer: _Layer
) -> jax.Array:
    """Attention of one tile, q [tile, kv_heads, group, head_dim], whose first token is at `position`."""
    tile, kv_heads, group, head_dim = q.shape
    columns = max(1, (PREFILL_KEYS if tile > 1 else DECODE_KEYS) // layer.page_size)
    keys_a_turn = columns * layer.page_size
    query_at = jnp.repeat(position + jnp.arange(tile), group)[:, None]
    # zeros where a pool row holds its value: keys need not be cut out of the pages to be multiplied
    q = jnp.pad(q.swapaxes(0, 1).reshape(kv_heads, tile * group, head_dim), ((0, 0), (0, 0), (0, head_dim)))
    end = jnp.minimum(position + tile, rows.kv_lens[row])
    first = jnp.maximum(position - layer.window + 1, 0) // layer.page_size

    def turn(index: jax.Array, seen: _Softmax) -> _Softmax:
        column = first + index * columns
        at = rows.page_offsets[row] + column + jnp.arange(columns)
        kv = layer.gather(rows.page_indices.at[at].get(mode="clip"))
        key_at = column * layer.page_size + jnp.arange(keys_a_turn)
        scores = layer.mask(jnp.einsum("hqd,htd->hqt", q, kv), query_at, key_at)
        return _meet(seen, scores, kv)

    turns = -(-(end - first * layer.page_size) // keys_a_turn)
    sinks = None if layer.sinks is None else jnp.tile(layer.sinks, tile)
    attended = lax.fori_loop(0, turns, turn, _Softmax.empty(q.shape, sinks)).result()[..., head_dim:]
    return attended.reshape(kv_heads, tile, group, head_dim).swapaxes(0, 1)
