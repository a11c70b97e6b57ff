"""One whole engine step as one pure function: what gets compiled, once per shape of the bucket table."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ...kernels.paged_attention.xla import ragged_paged_attention
from .forward_batch import ForwardBatch, Layout
from .pages import DeviceState
from .sampler import sample

# (weights, device state, packed batch) -> (device state, what was sampled)
Step = Callable[[nnx.State, DeviceState, jax.Array], tuple[DeviceState, dict[str, jax.Array]]]


def make_step(definition: nnx.GraphDef, layout: Layout) -> Step:
    """The step for the shape of `layout`: embedding to token slots, nothing left to the host."""
    page_size = layout.capacity.page_size

    def step(
        weights: nnx.State, state: DeviceState, packed: jax.Array
    ) -> tuple[DeviceState, dict[str, jax.Array]]:
        batch = layout.unpack(packed)
        decoder = nnx.merge(definition, weights)
        tokens = _token_ids(batch, state.slots)
        page_tokens = state.page_tokens.at[batch.rows.kv_slots].set(tokens)
        hidden, kv_pages = decoder(
            tokens, batch.positions, batch.rows, state.kv_pages, ragged_paged_attention
        )
        logits = decoder.logits(hidden[batch.logits_positions])
        sampled = sample(logits, batch, page_tokens.reshape(-1, page_size), layout.full)
        slots = state.slots.at[batch.slots].set(sampled["token_ids"])
        return DeviceState(kv_pages, page_tokens, slots), sampled

    return step


def _token_ids(batch: ForwardBatch, slots: jax.Array) -> jax.Array:
    """The step's tokens [T]; negative ones stand for what the step before sampled into a slot."""
    return jnp.where(batch.token_ids < 0, slots[jnp.maximum(-batch.token_ids - 1, 0)], batch.token_ids)
