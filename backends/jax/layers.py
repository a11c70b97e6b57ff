"""The small pieces of a decoder: norms and rotary embedding. Sums are float32 whatever the dtype."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, weight: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """Root mean square norm over the last axis, times (offset + weight). Zhang & Sennrich 2019."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * (offset + weight.astype(jnp.float32))).astype(x.dtype)


def rope_tables(positions: jax.Array, inverse_frequencies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin [tokens, 1, head_dim / 2] of each token's rotation, float32."""
    angles = positions[:, None, None].astype(jnp.float32) * inverse_frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding of x [tokens, heads, head_dim], first half against second. Su et al. 2021."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)`, or x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)
