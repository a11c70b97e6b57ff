"""Ragged paged attention in plain XLA: what serves on CPU, and a second opinion on other devices.

Decode rows go together: a loop over page columns, each turn attending all rows to their next few
pages. Prefill chunks go one after another in tiles of queries. Both loops run as long as the batch
at hand needs, not as long as the largest possible one, and keep a running softmax, so that memory
does not grow with the context.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .rows import RaggedRows

QUERY_TILE = 128  # tokens of a prefill chunk attended at once
KEY_TILE = 256  # keys that a prefill tile meets in one turn
DECODE_TILE_BYTES = 4 << 20  # what one turn gathers for all decode rows should stay in a CPU's caches
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

    def gather(self, pages: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of `pages` [..., n], each [..., kv_heads, n * page_size, head_dim] float32."""
        heads = jnp.arange(self.kv_pages.shape[1])[:, None]
        kv = self.kv_pages[pages[..., None, :] + self.first_page, heads].astype(jnp.float32)
        keys, values = jnp.split(kv.reshape(*kv.shape[:-3], -1, kv.shape[-1]), 2, axis=-1)
        return keys, values

    def mask(self, scores: jax.Array, query_at: jax.Array, key_at: jax.Array) -> jax.Array:
        """Cap `scores` and hide the keys that come after the query or before its window."""
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        seen = (key_at <= query_at) & (key_at > query_at - self.window)
        return jnp.where(seen, scores, MASKED)


class _Softmax(NamedTuple):
    """A softmax-weighted sum over the keys met so far."""

    top: jax.Array  # [..., queries] largest score
    total: jax.Array  # [..., queries] sum of exp(score - top)
    acc: jax.Array  # [..., queries, head_dim] the same sum, weighted by values

    @staticmethod
    def empty(shape: tuple[int, ...], sinks: jax.Array | None) -> "_Softmax":
        """No key met yet; a sink, broadcast to [..., queries], is there from the start."""
        acc = jnp.zeros(shape)
        if sinks is None:
            return _Softmax(jnp.full(shape[:-1], MASKED), jnp.zeros(shape[:-1]), acc)
        return _Softmax(jnp.broadcast_to(sinks.astype(jnp.float32), shape[:-1]), jnp.ones(shape[:-1]), acc)

    def result(self) -> jax.Array:
        return self.acc / jnp.maximum(self.total, 1e-30)[..., None]


def _meet(seen: _Softmax, scores: jax.Array, values: jax.Array, product: str) -> _Softmax:
    """Add keys to a running softmax: `scores` [..., queries, keys], MASKED where not to be seen."""
    top = jnp.maximum(seen.top, scores.max(-1))
    # a query that has met no key yet has top == MASKED, where exp(MASKED - MASKED) would count as 1
    weights = jnp.where(scores == MASKED, 0.0, jnp.exp(scores - top[..., None]))
    fade = jnp.exp(seen.top - top)
    acc = seen.acc * fade[..., None] + jnp.einsum(product, weights, values)
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
    kv = jnp.concatenate([_stored(k, k_scale, kv_pages.dtype), _stored(v, v_scale, kv_pages.dtype)], axis=-1)
    page, offset = jnp.divmod(rows.kv_slots, page_size)
    kv_pages = kv_pages.at[page + first_page, :, offset].set(kv)

    window = jnp.asarray(NO_WINDOW if window is None else window, jnp.int32)
    tokens, heads, head_dim = q.shape
    if sinks is not None:
        sinks = sinks.reshape(kv_heads, heads // kv_heads)
    layer = _Layer(kv_pages, jnp.asarray(first_page, jnp.int32), window, soft_cap, sinks)
    grouped = q.astype(jnp.float32).reshape(tokens, kv_heads, heads // kv_heads, head_dim)
    grouped *= scale * k_scale
    num_rows = rows.kv_lens.shape[0]
    decoded = _decode(grouped[:num_rows], rows, layer)
    out = jnp.pad(decoded, ((0, tokens - num_rows), (0, 0), (0, 0), (0, 0)))
    out = _prefill(grouped, out, rows, layer) * v_scale
    return out.reshape(q.shape).astype(q.dtype), kv_pages


def _stored(x: jax.Array, scale: jax.Array | float, dtype: jnp.dtype) -> jax.Array:
    """x / scale as the pool holds it: rounded, and within the range of a one-byte dtype."""
    if jnp.dtype(dtype).itemsize > 1:
        return (x / scale).astype(dtype)
    x = x.astype(jnp.float32) / scale
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.clip(jnp.rint(x), -127, 127).astype(dtype)
    largest = float(jnp.finfo(dtype).max)
    return jnp.clip(x, -largest, largest).astype(dtype)


def _decode(q: jax.Array, rows: RaggedRows, layer: _Layer) -> jax.Array:
    """Attention of the decode rows, q [rows, kv_heads, group, head_dim]; the other rows come out zero."""
    num_rows, kv_heads, _, head_dim = q.shape
    is_decode = jnp.arange(num_rows) < rows.num_decode_rows
    last = jnp.where(is_decode, rows.kv_lens, 0) - 1  # the query's position; -1 sees nothing
    row_bytes = layer.page_size * kv_heads * 2 * head_dim * 4
    columns = max(1, min(DECODE_TILE_BYTES // (num_rows * row_bytes), KEY_TILE // layer.page_size))
    first = jnp.maximum(last - layer.window + 1, 0) // layer.page_size  # page column of the first key seen
    turns = jnp.max(-(-(last + 1 - first * layer.page_size) // (columns * layer.page_size)))

    def turn(index: jax.Array, seen: _Softmax) -> _Softmax:
        column = first + index * columns
        at = (rows.page_offsets[:-1] + column)[:, None] + jnp.arange(columns)
        keys, values = layer.gather(rows.page_indices.at[at].get(mode="clip"))
        key_at = column[:, None] * layer.page_size + jnp.arange(columns * layer.page_size)
        scores = jnp.einsum("shgd,shtd->shgt", q, keys)
        scores = layer.mask(scores, last[:, None, None, None], key_at[:, None, None, :])
        return _meet(seen, scores, values, "shgt,shtd->shgd")

    empty = _Softmax.empty(q.shape, layer.sinks)
    return lax.fori_loop(0, turns, turn, empty).result()


def _prefill(q: jax.Array, out: jax.Array, rows: RaggedRows, layer: _Layer) -> jax.Array:
    """Attention of the rows after the decode rows, tile by tile, written over `out`.

    Tiles are taken in token order. A chunk's last tile may reach into tokens of later rows; what it
    writes there is overwritten by the tiles of those rows.
    """
    tokens = q.shape[0]
    tile = min(QUERY_TILE, tokens)
    q = jnp.pad(q, ((0, tile), (0, 0), (0, 0), (0, 0)))
    out = jnp.pad(out, ((0, tile), (0, 0), (0, 0), (0, 0)))

    def attend(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        row, offset, out = state
        start, length = rows.cu_q_lens[row] + offset, rows.cu_q_lens[row + 1] - rows.cu_q_lens[row]
        position = rows.kv_lens[row] - length + offset
        queries = lax.dynamic_slice_in_dim(q, start, tile)
        done = _prefill_tile(queries, position, rows, row, layer)
        out = lax.dynamic_update_slice_in_dim(out, done, start, 0)
        ended = offset + tile >= length
        return jnp.where(ended, row + 1, row), jnp.where(ended, 0, offset + tile), out

    state = (rows.num_decode_rows, jnp.int32(0), out)
    return lax.while_loop(lambda state: state[0] < rows.num_rows, attend, state)[2][:tokens]


def _prefill_tile(
    q: jax.Array, position: jax.Array, rows: RaggedRows, row: jax.Array, layer: _Layer
) -> jax.Array:
    """Attention of one tile, q [tile, kv_heads, group, head_dim], whose first token is at `position`."""
    tile = q.shape[0]
    columns = max(1, KEY_TILE // layer.page_size)
    keys_a_turn = columns * layer.page_size
    query_at = position + jnp.arange(tile)
    q = q.transpose(1, 2, 0, 3)
    end = jnp.minimum(position + tile, rows.kv_lens[row])
    first = jnp.maximum(position - layer.window + 1, 0) // layer.page_size

    def turn(index: jax.Array, seen: _Softmax) -> _Softmax:
        column = first + index * columns
        at = rows.page_offsets[row] + column + jnp.arange(columns)
        keys, values = layer.gather(rows.page_indices.at[at].get(mode="clip"))
        key_at = column * layer.page_size + jnp.arange(keys_a_turn)
        scores = jnp.einsum("hgqd,htd->hgqt", q, keys)
        scores = layer.mask(scores, query_at[:, None], key_at)
        return _meet(seen, scores, values, "hgqt,htd->hgqd")

    turns = -(-(end - first * layer.page_size) // keys_a_turn)
    sinks = None if layer.sinks is None else layer.sinks[..., None]
    empty = _Softmax.empty(q.shape, sinks)
    return lax.fori_loop(0, turns, turn, empty).result().transpose(2, 0, 1, 3)
