"""`radixmesh plan`: how a model lies on a TPU slice that need not be here, and how fast it can be.

The arithmetic comes first and answers at once; compiling the real steps for the slice (`jax/aot.py`) then
replaces what arithmetic cannot know: temporaries, code, and the transfers that the compiler makes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ..engine.config import Choice, EngineConfig
from ..engine.errors import ConfigError, ModelError
from ..engine.plan import CompiledStep, LayoutPlan, Plan, PlanOptions, StepPlan, Transfer
from ..engine.runner import ModelInfo
from ..sharding.collectives import Collective
from ..sharding.mesh import MeshSpec
from ..sharding.roofline import roofline
from ..sharding.rules import ShardingError
from ..sharding.topology import Chip, Topology, TopologyError
from .footprint import Footprint, Work, tensor_sizes
from .hardware import Hardware
from .models.describe import read_spec
from .models.source import ModelSource, find_model
from .models.spec import ModelSpec
from .resolve import resolve

FACTS = Path(__file__).parent / "models" / "facts"
DECODE_ROWS = (1, 8, 64, 256)
CONTEXT = 8192  # tokens, when none is asked for
CONTEXTS = (2048, 8192, 32768, 131072)
_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def plan(**options: object) -> Plan:
    """Plan for a model and a slice; the options are the fields of `PlanOptions`.

    Raises ConfigError for what does not exist or cannot be split, and when nothing fits: by how much, and
    the smallest slice that would do.
    """
    return make_plan(PlanOptions(**options))  # type: ignore[arg-type]


def make_plan(options: PlanOptions, chosen: Callable[[StepPlan], bool] | None = None) -> Plan:
    """`plan` of options that were checked.

    Of each layout the `chosen` steps are compiled; by default the last two, which are the decode step of the
    most rows and the prefill chunk.
    """
    topology, chip = _slice(options)
    source = plan_source(options)
    spec = read_spec(source)
    config, choices = _resolved(options, source, spec, chip, topology)
    assert topology.num_devices is not None and config.context_length is not None
    layouts = [
        _layout(spec, config, chip, data, tensor, options.rows or DECODE_ROWS)
        for data, tensor in _layouts(spec, topology.num_devices, options)
    ]
    if all(each.refusal for each in layouts):
        raise ConfigError(
            f"{source.name} does not fit {topology.name}: {_too_small(spec, config, chip, layouts)}"
        )
    if options.compile:
        layouts = _compiled(spec, config, topology, layouts, chosen)
    fitting = [each for each in layouts if each.refusal is None]
    if not fitting:
        raise ConfigError(f"{source.name} does not fit {topology.name}: {layouts[-1].refusal}")
    return Plan(
        model=source.name,
        topology=topology.name,
        chip=chip.name,
        devices=topology.num_devices,
        hbm_bytes=chip.hbm_bytes,
        bandwidth=chip.bandwidth,
        peak_flops=chip.flops,
        context_length=config.context_length,
        choices=choices,
        layouts=tuple(sorted(fitting, key=_speed, reverse=True)),
        refused=tuple(each for each in layouts if each.refusal is not None),
    )


def facts_names() -> list[str]:
    """The models whose config.json facts come with the package."""
    return sorted(path.stem for path in FACTS.glob("*.json"))


def plan_source(options: PlanOptions) -> ModelSource:
    """The files that say what a model is; of a repository no weights are fetched.

    Raises ModelError when there are none.
    """
    asked = str(options.model_path)
    if asked in facts_names():
        return ModelSource(str(FACTS / f"{asked}.json"), "hf", asked)
    if asked.endswith(".json") and Path(asked).is_file():
        return ModelSource(asked, "hf", asked)
    try:
        return find_model(EngineConfig(model_path=asked, load_format="dummy"))
    except ModelError as error:
        raise ModelError(f"{error}; a plan also knows {', '.join(facts_names())}") from error


def _slice(options: PlanOptions) -> tuple[Topology, Chip]:
    try:
        topology = Topology.parse(str(options.topology))
    except TopologyError as error:
        raise ConfigError(str(error)) from error
    if topology.chip is None:
        raise ConfigError(f"topology is {topology.name!r}; a plan is for a TPU slice such as v6e:2x4")
    return topology, topology.chip


def _resolved(
    options: PlanOptions, source: ModelSource, spec: ModelSpec, chip: Chip, topology: Topology
) -> tuple[EngineConfig, tuple[Choice, ...]]:
    """The options as `serve` would resolve them on that slice."""
    config = EngineConfig.from_options(
        model_path=str(options.model_path),
        backend="jax",
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
        context_length=options.context_length,
        max_running_requests=options.max_running_requests,
        chunked_prefill_size=options.chunked_prefill_size,
        page_size=options.page_size,
        mem_fraction_static=options.mem_fraction_static,
    )
    info = ModelInfo(source.name, source.path, spec.vocab_size, spec.context_length, frozenset())
    hardware = Hardware(
        platform="tpu",
        kind=chip.name,
        count=(topology.num_devices or 1) // chip.devices,
        cores=1,
        memory_bytes=0,
        free_bytes=0,
        driver="planned",
        reason="the slice that is planned for",
    )
    config, choices = resolve(config, info, hardware)
    if options.context_length is None:
        context = min(CONTEXT, spec.context_length)
        choice = Choice(
            "context_length", context, f"requests are counted at it; {spec.context_length} can be had"
        )
        config = replace(config, context_length=context)
        choices = tuple(choice if each.name == "context_length" else each for each in choices)
    return config, tuple(each for each in choices if each.name != "backend")


def _layouts(spec: ModelSpec, devices: int, options: PlanOptions) -> list[tuple[int, int]]:
    """(data, tensor) of the layouts to look at: the one that was asked for, or all that use every device."""
    data, tensor = _asked_mesh(options)
    sizes = tensor_sizes(spec)
    if tensor is not None and tensor not in sizes:
        accepted = ", ".join(map(str, sizes))
        raise ConfigError(
            f"tensor is {tensor}, which does not split {spec.num_heads} heads, {spec.num_kv_heads} KV heads"
            f" and {spec.intermediate_size} features of the MLP; accepted are {accepted}"
        )
    found = [
        (devices // size, size)
        for size in sizes
        if devices % size == 0 and tensor in (None, size) and data in (None, devices // size)
    ]
    if not found:
        asked = ",".join(f"{axis}={size}" for axis, size in (("data", data), ("tensor", tensor)) if size)
        raise ConfigError(
            f"a mesh of {asked} does not multiply out to the {devices} devices of {options.topology}"
        )
    return found


def _asked_mesh(options: PlanOptions) -> tuple[int | None, int | None]:
    """(data, tensor) as asked, None where nothing was said."""
    if options.mesh is None:
        return options.dp_size, options.tp_size
    try:
        mesh = MeshSpec.parse(options.mesh)
    except ShardingError as error:
        raise ConfigError(str(error)) from error
    if (options.dp_size or mesh.data) != mesh.data or (options.tp_size or mesh.tensor) != mesh.tensor:
        also = f"dp_size is {options.dp_size} and tp_size is {options.tp_size}"
        raise ConfigError(f"mesh is {options.mesh!r}, but {also}")
    return mesh.data, mesh.tensor


def _layout(
    spec: ModelSpec, config: EngineConfig, chip: Chip, data: int, tensor: int, rows: Sequence[int] = ()
) -> LayoutPlan:
    """The plan of one layout; if it fits, with decode steps of these numbers of rows and a prefill chunk."""
    footprint = _footprint(spec, config, data, tensor)
    assert config.mem_fraction_static and config.page_size and config.context_length
    budget = int(config.mem_fraction_static * chip.hbm_bytes) - footprint.weight_bytes
    pages = max(budget // (footprint.token_bytes * config.page_size), 0)
    lengths = sorted({*(each for each in CONTEXTS if each <= spec.context_length), config.context_length})
    found = LayoutPlan(
        data=data,
        tensor=tensor,
        weight_bytes=footprint.weight_bytes,
        pool_bytes=pages * config.page_size * footprint.token_bytes,
        token_bytes=footprint.token_bytes,
        pool_tokens=data * pages * config.page_size,
        requests={length: data * (pages // -(-length // config.page_size)) for length in lengths},
    )
    if not found.requests[config.context_length]:
        need = footprint.weight_bytes + config.context_length * footprint.token_bytes
        given = config.mem_fraction_static * chip.hbm_bytes
        return replace(
            found,
            refusal=f"weights of {_gib(footprint.weight_bytes)} and one request of {config.context_length}"
            f" tokens need {_gib(need)} a device; {config.mem_fraction_static:g} of {chip.name}'s"
            f" {_gib(chip.hbm_bytes)} is {_gib(given)}, {_gib(need - given)} too little",
        )
    return replace(found, steps=tuple(_steps(footprint, config, chip, found, rows)))


def _footprint(spec: ModelSpec, config: EngineConfig, data: int, tensor: int) -> Footprint:
    return Footprint(spec, data, tensor, _ITEM_BYTES[config.dtype], _ITEM_BYTES[config.kv_cache_dtype])


def _steps(
    footprint: Footprint, config: EngineConfig, chip: Chip, layout: LayoutPlan, wanted: Sequence[int]
) -> Iterator[StepPlan]:
    """Decode at the wanted numbers of rows that fit and at the most rows, and the largest prefill chunk."""
    assert config.context_length and config.max_running_requests and config.chunked_prefill_size
    context, data = config.context_length, layout.data
    most = min(layout.requests[context], config.max_running_requests * data)
    for rows in sorted({*(each for each in wanted if data <= each <= most), most}):
        yield _step("decode", rows, -(-rows // data), context, footprint.decode(rows, context), chip)
    tokens = config.chunked_prefill_size
    yield _step("prefill", data, tokens, 0, footprint.prefill(tokens), chip)


def _step(kind: str, rows: int, tokens: int, context: int, work: Work, chip: Chip) -> StepPlan:
    times = roofline(chip, work.hbm_bytes, work.flops, work.collectives)
    return StepPlan(
        kind=kind,
        rows=rows,
        tokens=tokens,
        context=context,
        hbm_bytes=work.hbm_bytes,
        flops=work.flops,
        transfers=transfers(work.collectives),
        memory_seconds=times.memory,
        compute_seconds=times.compute,
        interconnect_seconds=times.interconnect,
        seconds=times.seconds,
        slow_seconds=times.slow_seconds,
        bound=times.bound,
    )


def transfers(collectives: Sequence[Collective]) -> tuple[Transfer, ...]:
    """Collectives as a plan tells them."""
    return tuple(
        Transfer(kind=each.kind, devices=each.group_size, bytes=each.bytes, count=each.count)
        for each in collectives
    )


def _speed(layout: LayoutPlan) -> float:
    """New tokens a second at the most rows: what layouts are ranked by."""
    return max(step.tokens_a_second for step in layout.steps if step.kind == "decode")


def _too_small(spec: ModelSpec, config: EngineConfig, chip: Chip, layouts: Sequence[LayoutPlan]) -> str:
    """By how much the layout of the least memory misses, and the smallest slice that would do."""
    closest = min(layouts, key=lambda each: each.weight_bytes)
    for size in chip.slices:
        devices = Topology.parse(f"{chip.generation}:{size}").num_devices
        assert devices is not None
        splits = [each for each in tensor_sizes(spec) if devices % each == 0]
        if any(_layout(spec, config, chip, devices // each, each).refusal is None for each in splits):
            return f"{closest.refusal}; the smallest slice that would do is {chip.generation}:{size}"
    return f"{closest.refusal}; no slice of {chip.name} would do"


def _compiled(
    spec: ModelSpec, config: EngineConfig, topology: Topology, layouts: Sequence[LayoutPlan],
    chosen: Callable[[StepPlan], bool] | None,
) -> list[LayoutPlan]:  # fmt: skip
    """The layouts that fit with the chosen steps compiled, several at a time. Shows progress on stderr."""
    from .jax.aot import compile_for_plan

    try:
        topology.devices()
    except TopologyError as error:
        raise ConfigError(f"{error}; --no-compile plans without it") from error
    jobs = [
        (layout, at)
        for layout in layouts
        if layout.refusal is None
        for at, step in enumerate(layout.steps)
        if (chosen(step) if chosen else at >= len(layout.steps) - 2)
    ]
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(jobs), desc="compiling", unit="step", leave=False, dynamic_ncols=True) as progress,
    ):

        def run(job: tuple[LayoutPlan, int]) -> CompiledStep | ConfigError:
            layout, at = job
            try:
                return compile_for_plan(spec, config, topology, layout, layout.steps[at])
            except ConfigError as error:
                return error
            finally:
                progress.update()

        results = list(pool.map(run, jobs))
    done = list(layouts)
    for (layout, at), result in zip(jobs, results, strict=True):
        index = next(i for i, each in enumerate(layouts) if each is layout)
        if isinstance(result, ConfigError):
            done[index] = replace(done[index], refusal=str(result))
        else:
            steps = list(done[index].steps)
            steps[at] = replace(steps[at], compiled=result)
            done[index] = replace(done[index], steps=tuple(steps))
    return done


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.2f} GiB"
