"""The kernels of a run, compiled side by side while its weights are on their way to the device.

Which ones those are is found by taking steps like the warm-up's, with weights that hold anything and one
layer of each kind. Triton asks us before it compiles: we say that threads will, upon which it launches
nothing. What is missed here, or fails, meets the compiler again in the warm-up, and is dealt with there.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...engine.batch import SamplingVariant, ScheduleBatch
from ...engine.config import EngineConfig
from ...engine.runner import ModelInfo, RunnerCapacity
from ..models.params import ParamSpec
from ..models.spec import ModelSpec
from .decoder import Decoder
from .forward_batch import Layout, pack_pinned
from .graphs import captured_layouts
from .loader import empty_weights
from .operations import operations_for
from .pages import capacity_of, empty_state
from .rank_sums import RankSums
from .ranks import Ranks
from .step import Step
from .warm_batches import chunks_batch, eager_batches

logger = logging.getLogger(__name__)


@contextmanager
def compile_ahead(
    config: EngineConfig, info: ModelInfo, spec: ModelSpec, params: tuple[ParamSpec, ...],
    device: torch.device, ranks: Ranks,
) -> Iterator[None]:  # fmt: skip
    """Compile for `device`, the current one, what a runner of this config launches, while the body runs."""
    if device.type == "cpu" or find_spec("triton") is None:
        yield
        return
    began, quiet = time.monotonic(), ranks.rank > 0
    compilers = Compilers(device, max((os.cpu_count() or 1) // ranks.size, 1))
    try:
        try:
            with compilers.instead_of_launches():
                take_steps(config, info, spec, params, device, ranks)
        except Exception as error:  # out of memory, for one: then the warm-up compiles
            logger.warning("not all kernels are compiled ahead, so the start takes longer: %s", error)
        torch.cuda.empty_cache()
        yield
        loaded = time.monotonic()
        compilers.wait(quiet)
    finally:
        compilers.close()
    if not quiet:
        now, done = time.monotonic(), sum(each.result() for each in compilers.kernels)
        print(
            f"{done} kernels compiled, or found in Triton's cache, in {now - began:.1f} s,"
            f" {now - loaded:.1f} s of them after the weights were loaded",
            file=sys.stderr,
        )


class Compilers:
    """Threads that compile: Triton's passes and the assembler run without the interpreter's lock."""

    def __init__(self, device: torch.device, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, "compile", torch.cuda.set_device, (device,))
        self.kernels: list[Future[bool]] = []

    @contextmanager
    def instead_of_launches(self) -> Iterator[None]:
        """Launch nothing that the body launches for the first time, and compile it after the body: what was
        compiled meanwhile would run on what others had not computed."""
        from triton import knobs

        wanted: dict[tuple[str, str], tuple[Any, str]] = {}

        def take_over(*, key: str, fn: Any, compile: Any, **told: Any) -> bool:
            """Triton's question whether somebody else compiles."""
            wanted[fn.name, key] = fn.jit_function, compile["specialization_data"]
            return True

        before = knobs.runtime.jit_cache_hook
        knobs.runtime.jit_cache_hook = take_over
        try:
            yield
        finally:
            knobs.runtime.jit_cache_hook = before
            self.kernels += [self._threads.submit(_compile, *each) for each in wanted.values()]

    def wait(self, quiet: bool) -> None:
        """Until all are compiled. Shows progress on stderr."""
        for _ in tqdm(
            as_completed(self.kernels), total=len(self.kernels), desc="compiling", unit="kernel",
            leave=False, dynamic_ncols=True, disable=quiet,
        ):  # fmt: skip
            pass

    def close(self) -> None:
        """Compile nothing more."""
        self._threads.shutdown(cancel_futures=True)


def _compile(kernel: Any, wanted: str) -> bool:
    """Compile for the next launch, and load onto the device. Whether that went well."""
    try:
        return kernel.preload(wanted).run is not None  # to ask for `run` builds the launcher, and loads
    except Exception:
        logger.debug("a kernel failed to compile ahead", exc_info=True)
        return False


def take_steps(
    config: EngineConfig, info: ModelInfo, spec: ModelSpec, params: tuple[ParamSpec, ...],
    device: torch.device, ranks: Ranks,
) -> None:  # fmt: skip
    """Launch every kernel that a rank's runner will, but sums over ranks: others may not take part."""
    spec = replace(spec, layers=tuple(dict.fromkeys(spec.layers)))
    dtype, kv_dtype = getattr(torch, config.dtype), getattr(torch, config.kv_cache_dtype)
    assert config.chunked_prefill_size is not None
    capacity = capacity_of(config, config.chunked_prefill_size)  # as many pages as the steps fill
    weights = empty_weights(spec, params, dtype, device, ranks)
    operations = operations_for(device, strict=True)  # a twin would run, and for nothing
    decoder = Decoder(spec, weights, info.context_length, operations, ranks, _NoSums(ranks))
    step = Step(decoder, empty_state(ranks.held(spec), kv_dtype, capacity, device), operations)
    for layout, batch in _steps(capacity, info.context_length):
        on_device = layout.unpack(pack_pinned(layout, batch, device).to(device))
        step.hidden(on_device)
        logits = torch.zeros(layout.wanted, spec.vocab_size, dtype=dtype, device=device)
        if layout.variant == SamplingVariant.GREEDY:
            operations.greedy(logits)
            continue
        sampling = on_device.sampling
        operations.choose_tokens(
            logits.float() if layout.variant == SamplingVariant.FULL else logits, sampling.temperature,
            sampling.top_k, sampling.top_p, sampling.min_p, sampling.seeds, sampling.indices,
        )  # fmt: skip


def _steps(capacity: RunnerCapacity, context_length: int) -> Iterator[tuple[Layout, ScheduleBatch]]:
    """Those of the warm-up: of graphs the greedy ones, for the kernels that sample are the same in all."""
    nobody = chunks_batch([], capacity)
    for layout in captured_layouts(capacity):
        if layout.variant == SamplingVariant.GREEDY:
            yield layout, nobody
    for batch in eager_batches(capacity, context_length):
        yield Layout.exact(batch, capacity), batch


class _NoSums(RankSums):
    """Instead of what several ranks would have to do together."""

    def add(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return x if residual is None else residual
