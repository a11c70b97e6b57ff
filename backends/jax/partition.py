"""A vocabulary that is cut over the tensor axis of a mesh."""

import jax
import jax.numpy as jnp

from ...sharding.axis import MeshAxis


class VocabShards:
    """A vocabulary split over a mesh axis: shard i holds the ids from `i * size` on.

    Methods take [rows, size] values of the shard at hand and give the same [rows, ...] on every shard; what
    travels between shards is a few words a row, never the values.
    """

    def __init__(self, axis: MeshAxis, size: int) -> None:
        self.axis, self.size = axis, size
        self.first = axis.index() * size

    @property
    def ids(self) -> jax.Array:
        """The ids of this shard, [size]."""
        return self.first + jnp.arange(self.size, dtype=jnp.int32)

    def local(self, ids: jax.Array) -> jax.Array:
        """Where `ids` lie in this shard; `size`, which is out of bounds, for those of other shards."""
        at = ids - self.first
        return jnp.where((at >= 0) & (at < self.size), at, self.size)

    def unpack(self, bits: jax.Array) -> jax.Array:
        """This shard's ids of packed bits, uint32 [rows, words], 32 ids a word: bool [rows, size]."""
        words = -(-self.size // 32) + 1  # a shard may begin and end within a word
        bits = jnp.pad(bits, ((0, 0), (0, words)))
        bits = jax.lax.dynamic_slice_in_dim(bits, self.first // 32, words, 1)
        every = (bits[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        every = every.reshape(len(bits), -1)
        return jax.lax.dynamic_slice_in_dim(every, self.first % 32, self.size, 1) > 0

    def max(self, values: jax.Array) -> jax.Array:
        """The largest of each row, [rows, 1]."""
        return self.axis.max(values.max(-1, keepdims=True))

    def sum(self, values: jax.Array) -> jax.Array:
        """The sum of each row, [rows, 1]; rows may have several axes."""
        return self.axis.sum(values.sum(-1, keepdims=True))

    def argmax(self, values: jax.Array) -> jax.Array:
        """The id of each row's largest value, the first of equals; int32 [rows]."""
        best = jnp.argmax(values, -1).astype(jnp.int32)
        if self.axis.size == 1:
            return best
        tops = jnp.take_along_axis(values, best[:, None], -1)[:, 0]
        words = jax.lax.bitcast_convert_type(tops, jnp.int32)
        words, ids = self.axis.gather(jnp.stack([words, best + self.first])).swapaxes(0, 1)
        shard = jnp.argmax(jax.lax.bitcast_convert_type(words, jnp.float32), 0)
        return jnp.take_along_axis(ids, shard[None], 0)[0]

    def pick(self, values: jax.Array, ids: jax.Array) -> jax.Array:
        """The values of k ids a row, ids [rows, k]; [rows, k]."""
        return self.axis.sum(jnp.take_along_axis(values, self.local(ids), -1, mode="fill", fill_value=0))

    def top_k(self, values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
        """The k largest values of each row and their ids, best first, [rows, k] each."""
        tops, ids = jax.lax.top_k(values, min(k, self.size))
        if self.axis.size == 1:
            return tops, ids
        tops, ids = (_side_by_side(self.axis.gather(each)) for each in (tops, ids + self.first))
        tops, places = jax.lax.top_k(tops, min(k, tops.shape[-1]))
        return tops, jnp.take_along_axis(ids, places, -1)


def _side_by_side(x: jax.Array) -> jax.Array:
    """[shards, rows, n] to [rows, shards * n]: equal values stay in the order of their ids."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)
