"""One whole engine step as one pure function: what gets compiled, once per shape of the bucket table. Where
grammars bound what may be sampled it is two, for the host to find their masks while the first one runs.

On a mesh all of it is one `jax.shard_map`, manual on every axis: each data shard runs rows of its own on
pages of its own, and what travels between tensor shards is written out where it happens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...engine.config import Pooling
from ...kernels.paged_attention.rows import RaggedRows
from ...sharding.axis import MeshAxis
from ...sharding.rules import ShardingRules
from ...sharding.topology import chip_of
from .buckets import Part
from .decoder import Attention
from .forward_batch import ForwardBatch, Layout
from .pages import DeviceState, state_specs
from .sampler import sample, sample_masked

LOGITS = ("rows", None, "vocab")  # [data shards, L, vocab]

# (weights, device state, packed batch) -> (device state, what was sampled), or, of the first half,
# {"logits": [data, L, vocab]}; where there is a pooling also {"pooled": [data, S, embed]}
Step = Callable[[nnx.State, DeviceState, jax.Array], tuple[DeviceState, dict[str, jax.Array]]]
# (slots, token ids of pages, logits, packed batch) -> (slots, what was sampled)
Sampler = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def lower_step(
    definition: nnx.GraphDef, weights: nnx.State, state: DeviceState, layout: Layout, mesh: Mesh,
    rules: ShardingRules, attend: Attention, pooling: Pooling = "none",
) -> jax.stages.Lowered:  # fmt: skip
    """`make_step` ready for the compiler, the device state donated.

    `weights` and `state` may be `jax.ShapeDtypeStruct`s with shardings on devices that are not here.
    """
    step = make_step(definition, weights, layout, mesh, rules, attend, pooling)
    result: Any = _sampled_sharding(mesh, rules)
    if layout.shape.part == Part.FORWARD:
        pooled = {} if pooling == "none" else {"pooled": result}
        result = {"logits": rules.sharding(mesh, LOGITS), **pooled}
    shardings = (jax.tree.map(lambda each: each.sharding, state), result)
    options = _compiler_options(mesh.devices.flat[0])
    compiled = jax.jit(step, donate_argnums=1, out_shardings=shardings, compiler_options=options)
    return compiled.lower(weights, state, _packed(layout, mesh, rules))


def lower_sampler(state: DeviceState, layout: Layout, mesh: Mesh, rules: ShardingRules) -> jax.stages.Lowered:
    """`make_sampler` ready for the compiler, the slots donated."""
    tensor = mesh.shape["tensor"]
    vocab = -(-layout.vocab_size // tensor) * tensor
    logits = jax.ShapeDtypeStruct(
        (mesh.shape["data"], layout.rows, vocab), jnp.float32, sharding=rules.sharding(mesh, LOGITS)
    )
    shardings = (state.slots.sharding, _sampled_sharding(mesh, rules))
    sampler = jax.jit(make_sampler(layout, mesh, rules), donate_argnums=0, out_shardings=shardings)
    return sampler.lower(state.slots, state.page_tokens, logits, _packed(layout, mesh, rules))


def make_step(
    definition: nnx.GraphDef, weights: nnx.State, layout: Layout, mesh: Mesh, rules: ShardingRules,
    attend: Attention, pooling: Pooling = "none",
) -> Step:  # fmt: skip
    """The step for the shape of `layout`: embedding to token slots, nothing left to the host; or its first
    half, up to the logits.

    Of `weights` only the shardings are read. The step takes the packed batches of all data shards,
    [data, words] int32 split over "data", and returns what each sampled, [data, L, ...], whole everywhere:
    one process may have to read what devices of others sampled.
    """
    page_size = layout.capacity.page_size
    data = MeshAxis("data", mesh.shape["data"])

    def step(
        weights: nnx.State, state: DeviceState, packed: jax.Array
    ) -> tuple[DeviceState, dict[str, jax.Array]]:
        batch = layout.unpack(packed[0])
        decoder = nnx.merge(definition, weights)
        tokens = _token_ids(batch, state.slots)
        page_tokens = state.page_tokens.at[batch.rows.kv_slots].set(tokens)
        hidden, kv_pages = decoder(tokens, batch.positions, batch.rows, state.kv_pages, attend)
        logits = decoder.logits(hidden[batch.logits_positions])
        pooled = {} if pooling == "none" else {"pooled": data.gather(_pool(hidden, batch.rows, pooling))}
        if layout.shape.part == Part.FORWARD:
            return DeviceState(kv_pages, page_tokens, state.slots), {"logits": logits[None], **pooled}
        sampled = sample(logits, batch, page_tokens.reshape(-1, page_size), layout.shape.full, decoder.tensor)
        slots = state.slots.at[batch.slots].set(sampled["token_ids"])
        return DeviceState(kv_pages, page_tokens, slots), {**jax.tree.map(data.gather, sampled), **pooled}

    weight_specs: Any = jax.tree.map(lambda array: array.sharding.spec, weights)
    states = state_specs(rules)
    result: Any = PartitionSpec()
    if layout.shape.part == Part.FORWARD:
        result = {"logits": rules.spec(LOGITS), **({} if pooling == "none" else {"pooled": result})}
    return jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(weight_specs, states, rules.spec(("rows",))),
        out_specs=(states, result),
        check_vma=False,  # Pallas kernels do not say over which axes their results vary
    )


def make_sampler(layout: Layout, mesh: Mesh, rules: ShardingRules) -> Sampler:
    """The second half of a step with masks: logits to token slots."""
    page_size = layout.capacity.page_size
    data, tensor = (MeshAxis(name, mesh.shape[name]) for name in ("data", "tensor"))

    def sampler(
        slots: jax.Array, page_tokens: jax.Array, logits: jax.Array, packed: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        batch = layout.unpack(packed[0])
        sampled = sample_masked(logits[0], batch, page_tokens.reshape(-1, page_size), tensor)
        return slots.at[batch.slots].set(sampled["token_ids"]), jax.tree.map(data.gather, sampled)

    states = state_specs(rules)
    return jax.shard_map(
        sampler,
        mesh=mesh,
        in_specs=(states.slots, states.page_tokens, rules.spec(LOGITS), rules.spec(("rows",))),
        out_specs=(states.slots, PartitionSpec()),
        check_vma=False,  # every shard of a vocabulary gives the same, which nothing says
    )


def _packed(layout: Layout, mesh: Mesh, rules: ShardingRules) -> jax.ShapeDtypeStruct:
    """The packed batches of all data shards."""
    sharding = rules.sharding(mesh, ("rows",))
    return jax.ShapeDtypeStruct((mesh.shape["data"], layout.size), jnp.int32, sharding=sharding)


def _sampled_sharding(mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """Over several hosts every process gets what all data shards sampled: the one that reads it is there
    too."""
    hosts = {device.process_index for device in mesh.devices.flat}
    return NamedSharding(mesh, PartitionSpec()) if len(hosts) > 1 else rules.sharding(mesh, ("rows",))


def _pool(hidden: jax.Array, rows: RaggedRows, pooling: Pooling) -> jax.Array:
    """Of each row, [S, embed] float32: the last of its hidden states [T, embed], or their sum."""
    ends = rows.cu_q_lens[1:]
    if pooling == "last":
        return hidden[jnp.maximum(ends - 1, 0)].astype(jnp.float32)
    owners = jnp.searchsorted(ends, jnp.arange(len(hidden)), side="right")  # padding tokens have none
    return jax.ops.segment_sum(hidden.astype(jnp.float32), owners, num_segments=len(ends))


def _compiler_options(device: jax.Device) -> dict[str, str]:
    """What XLA has to be told for steps on such devices.

    On TPU7x matrix products prefer tiles of 16 rows of bfloat16 while parameters come in tiles of 8: left
    to itself, the compiler copies the stacked weights of all layers in every step.
    """
    chip = chip_of(device)
    if chip is None or chip.generation != "tpu7x":
        return {}
    return {"xla_tpu_control_large_2nd_minor_layout_for_x16": "false"}


def _token_ids(batch: ForwardBatch, slots: jax.Array) -> jax.Array:
    """The step's tokens [T]; negative ones stand for what the step before sampled into a slot."""
    return jnp.where(batch.token_ids < 0, slots[jnp.maximum(-batch.token_ids - 1, 0)], batch.token_ids)
