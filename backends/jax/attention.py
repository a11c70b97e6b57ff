"""Which paged attention a step is compiled with: chosen by the devices it is for, never by what is here."""

from functools import partial

import jax

from ...kernels.paged_attention import xla
from ...kernels.paged_attention.tpu_blocks import TABLE_ROOM
from ...sharding.topology import chip_of
from .decoder import Attention


def attention_for(device: jax.Device, live_tokens: int | None = None) -> Attention:
    """The implementation for steps on such devices: our Pallas kernel on TPUs, plain XLA elsewhere.

    The page tables of steps end with TABLE_ROOM entries that no row has, as `Layout` makes them.
    live_tokens: keys that the rows of a step hold together, for the kernel's cost estimate alone.
    """
    if device.platform != "tpu":
        return xla.ragged_paged_attention
    from ...kernels.paged_attention import pallas_tpu

    if (chip := chip_of(device)) is None:
        raise ValueError(f"the attention kernel knows no TPU of the kind {device.device_kind!r}")
    return partial(
        pallas_tpu.ragged_paged_attention,
        chip=chip.generation,
        live_tokens=live_tokens,
        table_room=TABLE_ROOM,
    )
