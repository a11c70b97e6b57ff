"""How parameters lie in a TPU's memory, so that no step has to copy them into another order.

The compiler's own choice is made array by array, without seeing what a layer does with it. Two things
go wrong with stacked layers: projections [embed, heads, head_dim] are laid out in tiles of heads by
head_dim, which a product over `embed` has to turn first; and on TPU7x arrays come in tiles of 8
rows where matrix products read 16, so that every step would copy the weights of all layers: 12 times the
bytes for Llama-3.2-1B, 3.4 times for Llama-3.1-8B, by the compiler's own count.
"""

import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding

from ...sharding.topology import chip_of
from ..models.params import ParamSpec

LANES = 128


def param_format(param: ParamSpec, dtype: jnp.dtype, sharding: NamedSharding) -> Format | NamedSharding:
    """Where and in what order a parameter lies on the devices of `sharding`; outside of TPUs as they like."""
    chip = chip_of(sharding.mesh.devices.flat[0])
    if chip is None or not param.stacked or len(param.shape) < 2 or dtype != jnp.bfloat16:
        return sharding
    axes = tuple(range(1 + len(param.shape)))
    if param.axes[0] == "embed" and len(axes) == 4:
        axes = (0, 2, 3, 1)  # [layers, heads, head_dim, embed]
    return Format(Layout(axes, tiling=((chip.tile_rows, LANES), (2, 1))), sharding)
