"""The JAX model runner: plans in, tokens out, one compiled call a step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from ...engine.batch import U32, ScheduleBatch, StepTokens
from ...engine.config import Choice, EngineConfig
from ...engine.runner import ModelInfo, RunnerCapacity
from ...sharding.axis import MeshAxis
from ...sharding.report import device_bytes
from ...sharding.rules import ShardingRules
from ..models.partition import partition
from ..models.spec import ModelSpec
from .attention import attention_for
from .buckets import Part, Shape, compiled_shapes, sampler_of, shape_of
from .compilation import compile_steps
from .decoder import Decoder
from .forward_batch import Layout
from .pages import DeviceState, choose_pool_tokens, state_shapes, token_bytes
from .params import MeshParam
from .step import lower_sampler, lower_step

CPU_ROW_TOKENS = 1024  # of a default pool on a CPU, where larger ones are asked for by max_total_tokens


@dataclass(slots=True)
class _Pending:
    """A launched step: arrays that the device may still be filling, [groups, L or S, ...]."""

    batches: Sequence[ScheduleBatch | None]
    arrays: dict[str, jax.Array]
    sample: Callable[[Sequence[U32 | None]], dict[str, jax.Array]] | None = None  # what is left to launch

    def constrain(self, masks: Sequence[U32 | None]) -> None:
        assert self.sample is not None, "no row waits for masks"
        self.arrays, self.sample = self.arrays | self.sample(masks), None

    def result(self) -> list[StepTokens]:
        assert self.sample is None, "constrain() comes first"
        arrays = {name: np.asarray(array) for name, array in self.arrays.items()}
        pooled, results = arrays.pop("pooled", None), []
        for group, batch in enumerate(self.batches):
            count = 0 if batch is None else len(batch.sampled)
            tokens = StepTokens(**{name: array[group, :count] for name, array in arrays.items()})
            if pooled is not None and batch is not None:
                tokens = replace(tokens, pooled=pooled[group, : len(batch.rows)])
            results.append(tokens)
        return results


class JaxRunner:
    """Runs a decoder on a mesh of JAX devices. `config` must be resolved: no option left to choose."""

    def __init__(
        self, config: EngineConfig, info: ModelInfo, spec: ModelSpec, params: tuple[MeshParam, ...],
        arrays: Mapping[str, jax.Array], mesh: Mesh, rules: ShardingRules, choices: tuple[Choice, ...] = (),
    ) -> None:  # fmt: skip
        self._mesh, self._rules = mesh, rules
        self._tensor = MeshAxis("tensor", mesh.shape["tensor"])
        self._spec = partition(spec, self._tensor.size)
        self._definition, self._weights = nnx.split(Decoder(spec, params, arrays, self._tensor))
        self._kv_dtype = jnp.dtype(config.kv_cache_dtype)
        self._pooling = config.embedding_pooling
        pool = self._choose_pool(config, info, device_bytes(arrays.values()))
        self.choices: tuple[Choice, ...] = (*choices, pool)
        self.capacity = _capacity(config, pool, mesh.shape["data"])
        self._compiled: dict[Shape, jax.stages.Compiled] = {}
        self._layouts: dict[Shape, Layout] = {}
        self._state: DeviceState | None = None
        self.logits: jax.Array | None = None  # of a first half whose second is to come

    def warmup(self) -> None:
        """Compile every shape of the bucket table, several at a time, then create the KV pool."""
        capacity = self.capacity
        shapes = compiled_shapes(capacity.max_step_tokens, capacity.max_running_requests)
        self._layouts = {shape: Layout(shape, capacity, self._spec.vocab_size) for shape in shapes}
        self._compiled = compile_steps(shapes, self._lower)
        self._state = self._empty_state()

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> _Pending:
        """Launch a step of the smallest shape that serves every group.

        A shape that `warmup` did not compile is a KeyError, never a compilation.
        """
        tokens = max(batch.num_tokens for batch in batches if batch is not None)
        variant = max(batch.variant for batch in batches if batch is not None)
        halves = any(batch is not None and len(batch.constrained) for batch in batches)
        part = Part.FORWARD if halves else Part.WHOLE
        shape = shape_of(self.capacity.max_step_tokens, tokens, variant, part)
        launched = self.launch(shape, self._layouts[shape].pack(batches))
        if not any(batch is not None and len(batch.pooled) for batch in batches):
            launched.pop("pooled", None)  # which nobody wants on the host
        if not any(batch is not None and batch.sampling.asked_ids.size for batch in batches):
            launched.pop("asked_logprobs", None)
        if not halves:
            return _Pending(batches, launched)
        sampler = sampler_of(shape, self.capacity.max_running_requests)

        def sample(masks: Sequence[U32 | None]) -> dict[str, jax.Array]:
            return self.launch(sampler, self._layouts[sampler].pack(batches, masks))

        return _Pending(batches, launched, sample)

    def launch(self, shape: Shape, words: np.ndarray) -> dict[str, jax.Array]:
        """Launch the compiled step for `shape` on packed batches, int32 [groups, words]: all that differs
        from step to step. Returns what it samples; a first half keeps its logits for the second."""
        packed = jax.make_array_from_callback(words.shape, self._rows, words.__getitem__)
        assert self._state is not None, "warmup() comes first"
        if shape.part == Part.SAMPLE:
            slots, page_tokens = self._state.slots, self._state.page_tokens
            slots, sampled = self._compiled[shape](slots, page_tokens, self.logits, packed)
            self._state, self.logits = self._state._replace(slots=slots), None
            return sampled
        self._state, sampled = self._compiled[shape](self._weights, self._state, packed)
        self.logits = sampled.pop("logits", None)
        return sampled

    def check(self) -> None:
        """What fails here fails in a step; hosts of one mesh end together by themselves."""

    def close(self) -> None:
        """Drop weights, pool and compiled steps."""
        self._state = self.logits = None
        self._weights = nnx.State({})
        self._compiled.clear()

    @property
    def _rows(self) -> NamedSharding:
        return self._rules.sharding(self._mesh, ("rows",))

    def _lower(self, shape: Shape) -> jax.stages.Lowered:
        layout, state = self._layouts[shape], self._abstract_state()
        if shape.part == Part.SAMPLE:
            return lower_sampler(state, layout, self._mesh, self._rules)
        attend = attention_for(self._mesh.devices.flat[0])
        return lower_step(
            self._definition, self._weights, state, layout, self._mesh, self._rules, attend, self._pooling
        )

    def _abstract_state(self) -> DeviceState:
        return state_shapes(self._spec, self._kv_dtype, self.capacity, self._mesh, self._rules)

    def _empty_state(self) -> DeviceState:
        return jax.tree.map(
            lambda each: jnp.zeros(each.shape, each.dtype, device=each.sharding), self._abstract_state()
        )

    def _choose_pool(self, config: EngineConfig, info: ModelInfo, weight_bytes: int) -> Choice:
        if config.max_total_tokens is not None:
            return Choice("max_total_tokens", config.max_total_tokens, "as asked")
        assert config.mem_fraction_static is not None and config.max_running_requests is not None
        devices = self._mesh.local_devices
        stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
        if stats:
            free = stats["bytes_limit"] - stats["bytes_in_use"]
        else:  # simulated devices share the host's memory
            free = psutil.virtual_memory().available // len(devices)
        useful = config.max_running_requests * info.context_length
        why = "every running request at full context; more could not be used"
        if not stats and useful > config.max_running_requests * CPU_ROW_TOKENS:
            useful = max(config.max_running_requests * CPU_ROW_TOKENS, info.context_length)
            why = f"{CPU_ROW_TOKENS} a running request, or one full context: start-up has to clear all of it"
        a_token, share = (
            token_bytes(self._spec, self._kv_dtype, self._tensor.size),
            config.mem_fraction_static,
        )
        pool = choose_pool_tokens(a_token, free, weight_bytes, share, useful, why)
        return pool._replace(value=self.agree(int(str(pool.value))))

    def agree(self, tokens: int) -> int:
        """The pool's size, when this process has room for so many tokens."""
        return tokens


def _capacity(config: EngineConfig, pool: Choice, num_groups: int) -> RunnerCapacity:
    assert config.page_size and config.max_running_requests and config.chunked_prefill_size
    num_pages = max(int(str(pool.value)) // config.page_size, 1)
    return RunnerCapacity(
        num_pages=num_pages,
        page_size=config.page_size,
        max_running_requests=config.max_running_requests,
        max_step_tokens=config.chunked_prefill_size,
        # rows that share a prefix list its pages once each, so a step may name more pages than exist
        max_page_indices=2 * num_pages + config.max_running_requests,
        num_groups=num_groups,
    )
