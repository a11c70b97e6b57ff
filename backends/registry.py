"""Backends by name. What a backend needs is imported when it is asked for."""

from pathlib import Path

from ..engine.config import Choice, EngineConfig
from ..engine.errors import ConfigError
from ..engine.runner import Backend, ModelInfo, ModelRunner
from .hardware import Hardware


def backend_for(config: EngineConfig) -> Backend:
    """The backend that `config` asks for."""
    if config.backend == "fake":
        if config.nnodes > 1:
            raise ConfigError(f"nnodes is {config.nnodes}; accepted for backend=fake is 1")
        from .fake.backend import FAKE_BACKEND

        return FAKE_BACKEND
    if config.node_rank:
        raise ConfigError(
            f"node_rank is {config.node_rank}; accepted is 0: other processes are started by radixmesh serve"
        )
    return Backend(describe_model, create_runner)


def describe_model(config: EngineConfig) -> ModelInfo:
    """Find the model, fetching it if need be, and read what the host must know of it."""
    from .models.describe import describe
    from .models.source import find_model

    return describe(config, find_model(config))


def create_runner(config: EngineConfig, info: ModelInfo) -> ModelRunner:
    """Resolve what is left to choose, load the weights and build the runner. Nothing is compiled yet."""
    from .hardware import detect
    from .resolve import resolve

    hardware = detect()
    config, choices = resolve(config, info, hardware)
    create = create_torch_runner if config.backend == "torch" else create_jax_runner
    return create(config, info, hardware, choices)


def create_jax_runner(
    config: EngineConfig, info: ModelInfo, hardware: Hardware, choices: tuple[Choice, ...]
) -> ModelRunner:
    """The JAX runner, its weights loaded. `config` is resolved."""
    import jax.numpy as jnp

    from ..sharding.rules import ShardingRules
    from .jax.compilation import use_compilation_cache
    from .jax.devices import mesh_for
    from .jax.loader import load_params
    from .jax.multihost import FollowingRunner, LeadingRunner, join
    from .jax.params import mesh_params
    from .jax.runner import JaxRunner
    from .models.checkpoint import open_checkpoint
    from .models.describe import read_spec
    from .models.families.registry import param_table
    from .models.partition import partition
    from .models.source import source_of
    from .models.weights import dummy_params, iterate_params
    from .resolve import jax_device

    cache = use_compilation_cache(config, compiled_folder(config))
    source = source_of(info)
    spec = read_spec(source)
    partition(spec, config.tp_size)  # refused before any weight is read
    crew = join(config, spec) if config.nnodes > 1 else None
    mesh, rules = mesh_for(config, jax_device(hardware)), ShardingRules()
    table = param_table(spec)
    params = mesh_params(table)
    if config.load_format == "dummy":
        weights = dummy_params(spec, table, config.random_seed or 0)
    elif source.orbax:
        from .jax.orbax_checkpoint import stored_params

        weights = stored_params(source.orbax, table, spec.num_layers)
    else:
        weights = iterate_params(spec, table, open_checkpoint(source))
    dtype = jnp.dtype(config.dtype)
    arrays = load_params(weights, params, spec.num_layers, dtype, mesh, rules)
    parts = (config, info, spec, params, arrays, mesh, rules, (*choices, cache))
    if crew is None:
        return JaxRunner(*parts)
    return FollowingRunner(crew, *parts) if crew.rank else LeadingRunner(crew, *parts)


def create_torch_runner(
    config: EngineConfig, info: ModelInfo, hardware: Hardware, choices: tuple[Choice, ...]
) -> ModelRunner:
    """The PyTorch runner, its weights loaded. `config` is resolved."""
    from .torch_cuda.start import start_runner

    return start_runner(config, info, hardware, choices)


def compiled_folder(config: EngineConfig) -> Path:
    """Where compiled steps are kept: beside the embedded models, unless `config` says otherwise."""
    from .models.embedded import models_folder

    return Path(config.compilation_cache_dir or models_folder().parent / "compiled").expanduser()
