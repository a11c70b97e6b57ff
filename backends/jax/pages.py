"""The KV pool on the device: how large it can be, and what lies in it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ...engine.config import Choice
from ...engine.errors import ConfigError
from ...engine.runner import RunnerCapacity
from ...sharding.rules import ShardingRules
from ..models.spec import ModelSpec

GIB = 1 << 30


class DeviceState(NamedTuple):
    """What a step changes; donated to it and returned by it. One page and one slot more than the engine
    knows of take the writes of padding. jax arrays, or `jax.ShapeDtypeStruct`s of them; the first axis is
    split over data shards, each of which has pages and slots of its own."""

    kv_pages: Any  # [layers * (pages + 1), kv_heads, page_size, 2 * head_dim]
    page_tokens: Any  # [(pages + 1) * page_size] int32, the token id behind each KV entry
    slots: Any  # [max_running_requests + 1] int32, the newest token of each running request


def state_specs(rules: ShardingRules) -> DeviceState:
    """How each array of the device state is split: `PartitionSpec`s."""
    return DeviceState(
        rules.spec(("pages", "kv_heads", "page", "head_dim")), rules.spec(("pages",)), rules.spec(("rows",))
    )


def state_shapes(
    spec: ModelSpec, dtype: jnp.dtype, capacity: RunnerCapacity, mesh: Mesh, rules: ShardingRules
) -> DeviceState:
    """The device state of all data shards as `jax.ShapeDtypeStruct`s with their shardings.

    spec: as `partition` gives it. capacity: of one data shard.
    """
    pages, page_size = capacity.num_pages + 1, capacity.page_size
    data = mesh.shape["data"]
    shapes = DeviceState(
        (data * spec.num_layers * pages, spec.num_kv_heads, page_size, 2 * spec.head_dim),
        (data * pages * page_size,),
        (data * (capacity.max_running_requests + 1),),
    )
    arrays = zip(shapes, (dtype, jnp.int32, jnp.int32), state_specs(rules), strict=True)
    return DeviceState(
        *(
            jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, part))
            for shape, kind, part in arrays
        )
    )


def token_bytes(spec: ModelSpec, dtype: jnp.dtype, tensor: int = 1) -> int:
    """Bytes that one token takes in the pool on one device, all layers together.

    spec: as `partition` gives it for so many tensor shards.
    """
    kv_heads = spec.num_kv_heads // tensor
    return spec.num_layers * 2 * kv_heads * spec.head_dim * jnp.dtype(dtype).itemsize + 4


def choose_pool_tokens(
    bytes_a_token: int, free_bytes: int, weight_bytes: int, fraction: float, useful: int, why_useful: str
) -> Choice:
    """Tokens in the pool when the user named no number.

    All bytes are those of one device. free_bytes: free now, the weights loaded. fraction: of what was
    free before, weights and pool together. useful: more tokens are not worth their memory, and why. The
    result is rounded down to a coarse grid, so that the next start meets the same shapes in the
    compilation cache.
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
