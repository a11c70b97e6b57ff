"""Start-up compiles every step that there can be, several at a time, or finds it in the persistent cache.

The cache is jax's: what was compiled is found again when the program, its flags, the chip and the
versions of jax and its compiler are the same; the model's sizes and the mesh are part of the program.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from tqdm import tqdm

from ...engine.config import Choice, EngineConfig
from .buckets import Part, Shape

MIB = 1 << 20


@dataclass(frozen=True)
class Compilation:
    """One compiled step. The seconds are those of tracing and compiling, while others compiled too."""

    shape: Shape
    step: jax.stages.Compiled
    seconds: float

    @property
    def code_bytes(self) -> int:
        """Its program in a device's memory; 0 where the platform does not tell, as on a CPU."""
        memory = self.step.memory_analysis()
        return memory.generated_code_size_in_bytes if memory is not None else 0


def compile_steps(
    shapes: Sequence[Shape], lower: Callable[[Shape], jax.stages.Lowered]
) -> dict[Shape, jax.stages.Compiled]:
    """Compile the step of each shape, as many at a time as there are cores. Shows progress and then a table
    of all steps on stderr."""

    def compile_one(shape: Shape) -> Compilation:
        started = time.monotonic()
        step = lower(shape).compile()
        return Compilation(shape, step, time.monotonic() - started)

    started, done = time.monotonic(), []
    with (
        _cache_hits() as hits,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(shapes), desc="compiling", unit="step", leave=False, dynamic_ncols=True) as progress,
    ):
        for each in pool.map(compile_one, shapes):
            done.append(each)
            progress.update()
    for line in table(done, time.monotonic() - started, len(hits)):
        print(line, file=sys.stderr)
    return {each.shape: each.step for each in done}


def table(done: Sequence[Compilation], seconds: float, hits: int) -> Iterator[str]:
    """The lines that close a start: `seconds` in all, and how many were found in the cache."""
    yield f"radixmesh: compiled {len(done)} steps in {seconds:.1f} s, {hits} of them found in the cache"
    yield "  step                                seconds  code, MiB"
    for each in done:
        name = _name(each.shape)
        yield f"  {name:34s}  {each.seconds:7.1f}  {_mib(each.code_bytes):>9s}"
    yield f"  {'all':34s}  {seconds:7.1f}  {_mib(sum(each.code_bytes for each in done)):>9s}"


def _name(shape: Shape) -> str:
    tokens = "1 token" if shape.tokens == 1 else f"{shape.tokens} tokens"
    match shape.part:
        case Part.FORWARD:
            return f"{tokens}, up to the logits"
        case Part.SAMPLE:
            return f"{tokens} from logits and masks"
    return tokens + ", logprobs or penalties" * shape.full


def use_compilation_cache(config: EngineConfig, folder: Path) -> Choice:
    """Point JAX's persistent compilation cache at `folder`, or switch it off."""
    if config.disable_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
        return Choice("compilation_cache", "off", "as asked")
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return Choice("compilation_cache", str(folder), "the next start finds its compiled steps there")


@contextmanager
def _cache_hits() -> Iterator[list[str]]:
    """A list that grows by one whenever jax finds a program in its cache."""
    hits: list[str] = []

    def listen(event: str, **about: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}" if size else "not told"
