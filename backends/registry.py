"""Backends by name. What a backend needs is imported when it is asked for."""

from pathlib import Path

from ..engine.config import EngineConfig
from ..engine.runner import Backend, ModelInfo, ModelRunner


def backend_for(config: EngineConfig) -> Backend:
    """The backend that `config` asks for."""
    if config.backend == "fake":
        from .fake.backend import FAKE_BACKEND

        return FAKE_BACKEND
    return Backend(describe_model, create_jax_runner)


def describe_model(config: EngineConfig) -> ModelInfo:
    """Find the model, fetching it if need be, and read what the host must know of it."""
    from .models.describe import describe
    from .models.source import find_model

    return describe(config, find_model(config))


def create_jax_runner(config: EngineConfig, info: ModelInfo) -> ModelRunner:
    """Resolve what is left to choose, load the weights and build the JAX runner. Nothing is compiled yet."""
    import jax.numpy as jnp

    from ..sharding.rules import ShardingRules
    from .hardware import detect
    from .jax.devices import mesh_for
    from .jax.loader import load_params
    from .jax.partition import partition
    from .jax.runner import JaxRunner, use_compilation_cache
    from .models.checkpoint import open_checkpoint
    from .models.describe import read_spec
    from .models.families.registry import param_table
    from .models.source import source_of
    from .models.weights import dummy_params, iterate_params
    from .resolve import jax_device, resolve

    hardware = detect()
    config, choices = resolve(config, info, hardware)
    cache = use_compilation_cache(config, compiled_folder(config))
    source = source_of(info)
    spec = read_spec(source)
    partition(spec, config.tp_size)  # refused before any weight is read
    mesh, rules = mesh_for(config, jax_device(hardware)), ShardingRules()
    params = param_table(spec)
    if config.load_format == "dummy":
        weights = dummy_params(spec, params, config.random_seed or 0)
    elif source.orbax:
        from .jax.orbax_checkpoint import stored_params

        weights = stored_params(source.orbax, params, spec.num_layers)
    else:
        weights = iterate_params(spec, params, open_checkpoint(source))
    dtype = jnp.dtype(config.dtype)
    arrays = load_params(weights, params, spec.num_layers, dtype, mesh, rules)
    return JaxRunner(config, info, spec, params, arrays, mesh, rules, (*choices, cache))


def compiled_folder(config: EngineConfig) -> Path:
    """Where compiled steps are kept: beside the embedded models, unless `config` says otherwise."""
    from .models.embedded import models_folder

    return Path(config.compilation_cache_dir or models_folder().parent / "compiled").expanduser()
