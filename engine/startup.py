"""From a config to a warm engine, the same for `LLM` and for the engine process."""

import gc
import sys
from collections.abc import Iterable

from .config import Choice, EngineConfig
from .engine import Engine
from .grammar.registry import backend_of
from .runner import Backend, ModelInfo


def describe(config: EngineConfig, backend: Backend) -> ModelInfo:
    """What the model is, before its weights are read. Raises ConfigError, ModelError."""
    backend_of(config)  # what is not installed is told before weights are read
    return backend.describe(config)


def start_engine(config: EngineConfig, backend: Backend, info: ModelInfo) -> Engine:
    """Load and warm up the model that `describe` told of, and print every automatic choice on stderr.

    Raises ConfigError, ModelError.
    """
    runner = backend.create_runner(config, info)
    try:
        print_choices(all_choices(info, runner.choices))
        runner.warmup()
        return Engine(config, info, runner)
    except BaseException:
        runner.close()
        raise


def calm_garbage_collection() -> None:
    """For a process that is an engine and nothing else, once it is warm: what start-up made stays for
    good, and looking through all of it again and again would hold up steps for 15 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def all_choices(info: ModelInfo, more: Iterable[Choice]) -> tuple[Choice, ...]:
    """The model's choices and the runner's; of two with one name the runner's, which came later."""
    return tuple({choice.name: choice for choice in (*info.choices, *more)}.values())


def print_choices(choices: Iterable[Choice]) -> None:
    """One line each on stderr: name=value because reason."""
    for name, value, reason in choices:
        print(f"radixmesh: {name}={value} because: {reason}", file=sys.stderr, flush=True)
