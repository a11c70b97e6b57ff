"""Compile the step that serves, for devices that need not be here, from `config.json` facts alone.

No weight is read and nothing runs: parameters, KV pool and batch are shapes with shardings. What the
compiler then says of the step is exact where it speaks of memory and transfers, and its own estimate
where it speaks of time.
"""

import re
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ...engine.batch import SamplingVariant
from ...engine.config import EngineConfig
from ...engine.errors import ConfigError
from ...engine.plan import CompiledStep, LayoutPlan, StepPlan, Transfer
from ...engine.runner import RunnerCapacity
from ...sharding.axis import MeshAxis
from ...sharding.collectives import read_collectives
from ...sharding.hlo import Program
from ...sharding.mesh import MeshSpec, make_mesh
from ...sharding.roofline import roofline
from ...sharding.rules import ShardingRules
from ...sharding.topology import Topology, chip_of
from ...sharding.traffic import hbm_bytes
from ..models.families.registry import param_table
from ..models.partition import partition
from ..models.spec import ModelSpec
from .attention import attention_for
from .buckets import Shape, shape_of
from .decoder import Decoder
from .forward_batch import Layout
from .loader import abstract_param
from .pages import state_shapes
from .params import mesh_params
from .step import lower_step


def compile_step(
    spec: ModelSpec, capacity: RunnerCapacity, mesh: Mesh, dtypes: tuple[str, str], shape: Shape,
    live_tokens: int, flops: float,
) -> CompiledStep:  # fmt: skip
    """Compile the step of one shape for the devices of `mesh` and report on it.

    Args:
        capacity: of one data shard.
        dtypes: of weights and activations, and of the KV pool.
        shape: one of the bucket table.
        live_tokens: keys that a data shard's rows hold together, for the attention kernel's cost estimate.
        flops: that one device does in the step; the compiler counts the layers' loop once.

    Raises ConfigError when it does not fit the devices' memory.
    """
    lowered, pool_bytes = lower_abstract(spec, capacity, mesh, dtypes, shape, live_tokens)
    started = time.monotonic()
    compiled, text = compile_with_text(lowered)
    seconds = time.monotonic() - started
    memory, chip, program = compiled.memory_analysis(), chip_of(mesh.devices.flat[0]), Program.parse(text)
    assert memory is not None and chip is not None
    collectives = read_collectives(program)
    moved = hbm_bytes(program)
    times = roofline(chip, moved, flops, (each for each in collectives if each.always))
    return CompiledStep(
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        pool_aliased=memory.alias_size_in_bytes >= pool_bytes,
        hbm_bytes=moved,
        transfers=tuple(
            Transfer(
                kind=each.kind,
                devices=each.group_size,
                bytes=each.bytes,
                count=each.count,
                always=each.always,
            )
            for each in collectives
        ),
        compile_seconds=seconds,
        seconds=times.seconds,
        bound=times.bound,
    )


def compile_for_plan(
    spec: ModelSpec, config: EngineConfig, topology: Topology, layout: LayoutPlan, step: StepPlan
) -> CompiledStep:
    """Compile a step of a plan's layout. Raises ConfigError when it does not fit."""
    assert config.page_size and config.max_running_requests and config.chunked_prefill_size
    mesh = make_mesh(topology.devices(), MeshSpec(layout.data, layout.tensor))
    pages = layout.pool_tokens // layout.data // config.page_size
    capacity = RunnerCapacity(
        num_pages=pages,
        page_size=config.page_size,
        max_running_requests=config.max_running_requests,
        max_step_tokens=config.chunked_prefill_size,
        max_page_indices=2 * pages + config.max_running_requests,
    )
    if step.kind == "decode":
        keys = step.tokens * sum(min(step.context, each.window or step.context) for each in spec.layers)
    else:
        keys = step.tokens * spec.num_layers
    dtypes = (config.dtype, config.kv_cache_dtype)
    shape = shape_of(config.chunked_prefill_size, step.tokens, SamplingVariant.GREEDY)
    return compile_step(spec, capacity, mesh, dtypes, shape, keys // spec.num_layers, step.flops)


def compile_with_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """Compile, and the text of the optimised program.

    `Compiled.as_text` fails on programs that use a TPU's SparseCores; what the compiler writes out on the
    way is always readable.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            told = re.search(r"Ran out of memory.*?(?=\.\s|\n|$)", str(error))
            if told is None:
                raise
            raise ConfigError(f"the compiler says of the step: {told[0]}") from error
        (dumped,) = Path(folder).glob("*after_optimizations.txt")
        return compiled, dumped.read_text(encoding="utf-8")


def lower_abstract(
    spec: ModelSpec, capacity: RunnerCapacity, mesh: Mesh, dtypes: tuple[str, str], shape: Shape,
    live_tokens: int | None = None,
) -> tuple[jax.stages.Lowered, int]:  # fmt: skip
    """The step of shapes alone, ready to compile, and the bytes of the KV pool on one device."""
    dtype, kv_dtype = (jnp.dtype(each) for each in dtypes)
    rules, tensor = ShardingRules(), MeshAxis("tensor", mesh.shape["tensor"])
    params = mesh_params(param_table(spec))
    arrays = {param.name: abstract_param(param, spec.num_layers, dtype, mesh, rules) for param in params}
    definition, weights = nnx.split(Decoder(spec, params, arrays, tensor))
    state = state_shapes(partition(spec, tensor.size), kv_dtype, capacity, mesh, rules)
    attend = attention_for(mesh.devices.flat[0], live_tokens)
    layout = Layout(shape, capacity, spec.vocab_size)
    lowered = lower_step(definition, weights, state, layout, mesh, rules, attend)
    pool = state.kv_pages
    pool_bytes = pool.dtype.itemsize
    for size in pool.sharding.shard_shape(pool.shape):
        pool_bytes *= size
    return lowered, pool_bytes
