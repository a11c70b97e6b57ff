"""The KV pool on the device: how large it can be, and what lies in it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...engine.config import Choice
from ...engine.errors import ConfigError
from ..models.spec import ModelSpec

GIB = 1 << 30


class DeviceState(NamedTuple):
    """What a step changes; donated to it and returned by it. One page and one slot more than the engine
    knows of take the writes of padding. jax arrays, or `jax.ShapeDtypeStruct`s of them."""

    kv_pages: Any  # [layers * (pages + 1), kv_heads, page_size, 2 * head_dim]
    page_tokens: Any  # [(pages + 1) * page_size] int32, the token id behind each KV entry
    slots: Any  # [max_running_requests + 1] int32, the newest token of each running request


def state_shapes(
    spec: ModelSpec, dtype: jnp.dtype, num_pages: int, page_size: int, num_slots: int
) -> DeviceState:
    """Shapes and dtypes of the device state, as `jax.ShapeDtypeStruct`s."""
    kv_shape = (spec.num_layers * (num_pages + 1), spec.num_kv_heads, page_size, 2 * spec.head_dim)
    return DeviceState(
        jax.ShapeDtypeStruct(kv_shape, dtype),
        jax.ShapeDtypeStruct(((num_pages + 1) * page_size,), jnp.int32),
        jax.ShapeDtypeStruct((num_slots + 1,), jnp.int32),
    )


def token_bytes(spec: ModelSpec, dtype: jnp.dtype) -> int:
    """Bytes that one token takes in the pool, all layers together."""
    return spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * jnp.dtype(dtype).itemsize + 4


def choose_pool_tokens(
    bytes_a_token: int, free_bytes: int, weight_bytes: int, fraction: float, useful: int, why_useful: str
) -> Choice:
    """Tokens in the pool when the user named no number.

    free_bytes: free now, the weights loaded. fraction: of what was free before, weights and pool
    together. useful: more tokens are not worth their memory, and why. The result is rounded down to a
    coarse grid, so that the next start meets the same shapes in the compilation cache.
    """
    budget = int(fraction * (free_bytes + weight_bytes)) - weight_bytes
    fitting = budget // bytes_a_token
    if fitting < 1:
        raise ConfigError(
            f"mem_fraction_static is {fraction}: weights take {weight_bytes / GIB:.2f} GiB and leave no room"
            f" for a KV pool in that share of {(free_bytes + weight_bytes) / GIB:.2f} GiB; raise it"
        )
    tokens = _coarse(min(fitting, useful))
    bound = (
        f"{fraction:.2f} of {(free_bytes + weight_bytes) / GIB:.1f} GiB free, less"
        f" {weight_bytes / GIB:.2f} GiB of weights, at {bytes_a_token} bytes a token"
        if fitting < useful
        else why_useful
    )
    return Choice("max_total_tokens", tokens, f"{tokens * bytes_a_token / GIB:.2f} GiB of KV: {bound}")


def _coarse(tokens: int) -> int:
    """Round down to four steps an octave."""
    step = 1 << max(tokens.bit_length() - 3, 0)
    return tokens // step * step
