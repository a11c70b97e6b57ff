"""The PyTorch model runner: plans in, tokens out, on an NVIDIA or AMD GPU or on the CPU."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...engine.batch import U32, SamplingVariant, ScheduleBatch, StepTokens
from ...engine.config import Choice, EngineConfig
from ...engine.errors import ConfigError
from ...engine.runner import ModelInfo
from ..models.spec import ModelSpec
from .chunk_graphs import ChunkGraphs
from .decoder import Decoder
from .forward_batch import ForwardBatch, Layout, pack_pinned
from .graphs import DecodeGraphs
from .loader import Weights
from .operations import operations_for
from .pages import GIB, capacity_of, choose_pool, empty_state, free_memory
from .rank_sums import start_sums
from .ranks import Ranks
from .sampler import Masks, Sampled
from .step import Step
from .warm_batches import eager_batches


@dataclass(slots=True)
class Launched:
    """A launched step: host arrays that the device may still be filling, until `done`."""

    arrays: dict[str, Tensor]
    done: torch.cuda.Event | None
    rest: Callable[[U32], "Launched"] | None = None  # of a step that waits for its masks

    def constrain(self, masks: Sequence[U32 | None]) -> None:
        (given,) = masks
        assert self.rest is not None and given is not None, "no row waits for masks"
        launched = self.rest(given)
        self.arrays, self.done, self.rest = launched.arrays, launched.done, None

    def ready(self) -> bool:
        """Whether `result` would not have to wait."""
        return self.done is None or self.done.query()

    def result(self) -> list[StepTokens]:
        assert self.rest is None, "constrain() comes first"
        if self.done is not None:
            self.done.synchronize()
        return [StepTokens(**{name: array.numpy() for name, array in self.arrays.items()})]


class TorchRunner:
    """Runs a decoder, or one rank's part of it, on one device. `config` must be resolved: no option left to
    choose. `spec` is the whole model's."""

    def __init__(
        self, config: EngineConfig, info: ModelInfo, spec: ModelSpec, weights: Weights, device: torch.device,
        choices: tuple[Choice, ...] = (), ranks: Ranks | None = None,
    ) -> None:  # fmt: skip
        ranks = ranks or Ranks()
        held = ranks.held(spec)
        sums, told = start_sums(ranks, getattr(torch, config.dtype), device)
        pool = choose_pool(config, info, held, weights.num_bytes, device, ranks)
        self.choices: tuple[Choice, ...] = (*choices, pool, *told)
        self.capacity = capacity_of(config, int(str(pool.value)))
        self._device, self._ranks = device, ranks
        self._context_length = info.context_length
        self._pooling = config.embedding_pooling
        operations = operations_for(device, config.strict_kernels)
        decoder = Decoder(spec, weights, info.context_length, operations, ranks, sums)
        state = empty_state(held, getattr(torch, config.kv_cache_dtype), self.capacity, device)
        self._step: Step | None = Step(decoder, state, operations)
        self._graphs: DecodeGraphs | None = None
        self._chunks: ChunkGraphs | None = None

    @torch.inference_mode()
    def warmup(self) -> None:
        """Compile every kernel and capture the decode graphs. A CPU has neither.

        Raises ConfigError when the largest step or the graphs do not fit beside weights and pool.
        """
        if self._device.type == "cpu":
            return
        try:
            self._compile_and_capture()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"a step of {self.capacity.max_step_tokens} tokens or the decode graphs do not fit into the"
                " memory that mem_fraction_static leaves; lower it, or chunked_prefill_size, or"
                " max_running_requests"
            ) from error

    def _compile_and_capture(self) -> None:
        assert self._step is not None
        started = time.monotonic()
        for batch in eager_batches(self.capacity, self._context_length):
            self.forward([batch]).result()
        if twins := self._step.operations.twins:
            print(f"no decode graphs, because PyTorch runs {', '.join(twins)}", file=sys.stderr)
            return
        graphs = DecodeGraphs(self._step, self.capacity, self._device)
        quiet, pieces = self._ranks.rank > 0, 0
        graphs.capture(quiet)
        if self._ranks.size == 1:  # of several it has not been seen on GPUs yet
            chunks = ChunkGraphs(self._step, self.capacity, self._device)
            chunks.capture()
            self._chunks, pieces = chunks, len(chunks)
        self._graphs = graphs
        if quiet:
            return
        print(
            f"captured {len(graphs)} graphs of decode steps and {pieces} of parts of small prefill steps in"
            f" {time.monotonic() - started:.1f} s;"
            f" {free_memory(self._device) / GIB:.1f} GiB of GPU memory stay free",
            file=sys.stderr,
        )

    @torch.inference_mode()
    def forward(self, batches: Sequence[ScheduleBatch | None]) -> Launched:
        """Launch a step: decode rows alone as a captured graph, few tokens as graphs between attentions,
        anything else kernel by kernel, and so the sampling of steps with masks."""
        assert self._step is not None, "the runner is closed"
        (batch,) = batches
        assert batch is not None, "a step has a batch"
        count, hidden, pooled = len(batch.logits_rows), None, None
        if self._graphs is not None and self._graphs.fits(batch):
            hidden, sampled = self._graphs.replay(batch)
            hidden = hidden[:count]
            if batch.variant != SamplingVariant.FULL and not len(batch.constrained):
                # a row has one token: that is its last, and their sum
                return self._pending(sampled, count, hidden.float() if len(batch.pooled) else None)
        chunks = self._chunks if hidden is None and self._chunks and self._chunks.fits(batch) else None
        layout = chunks.layout(batch) if chunks else Layout.exact(batch, self.capacity)
        packed = pack_pinned(layout, batch, self._device).to(self._device, non_blocking=True)
        on_device = layout.unpack(packed)
        if chunks:
            hidden = chunks.run(layout, packed, on_device, batch.num_tokens)
        elif hidden is None:
            hidden = self._step.hidden(on_device)
        if len(batch.pooled):
            pooled = self._step.pool(hidden, on_device, self._pooling)
        logits = self._step.logits(hidden, on_device)
        if len(batch.constrained):
            return Launched({}, None, partial(self._sample_masked, logits, pooled, on_device, batch))
        return self._pending(self._step.sample(logits, on_device, batch.variant), count, pooled)

    @torch.inference_mode()
    def _sample_masked(
        self, logits: Tensor, pooled: Tensor | None, on_device: ForwardBatch, batch: ScheduleBatch, masks: U32
    ) -> Launched:
        assert self._step is not None, "the runner is closed"
        rows, words = batch.constrained.astype(np.int64), np.array(masks.view(np.int32))
        tensors = (torch.from_numpy(each) for each in (rows, words))
        if self._device.type != "cpu":
            tensors = (each.pin_memory().to(self._device, non_blocking=True) for each in tensors)
        sampled = self._step.sample(logits, on_device, batch.variant, Masks(*tensors))
        return self._pending(sampled, len(batch.logits_rows), pooled)

    def check(self) -> None:
        """What fails here fails in a step."""

    def close(self) -> None:
        """Drop weights, pool and graphs."""
        self._step = self._graphs = self._chunks = None

    def _pending(self, sampled: Sampled, count: int, pooled: Tensor | None = None) -> Launched:
        """Copy to the host what was sampled, and pooled, without waiting for it."""
        arrays = {name: array[:count] for name, array in sampled.items()}
        if pooled is not None:
            arrays["pooled"] = pooled
        if self._device.type == "cpu":
            return Launched(arrays, None)
        host = {
            name: torch.empty_like(array, device="cpu", pin_memory=True).copy_(array, non_blocking=True)
            for name, array in arrays.items()
        }
        done = torch.cuda.Event()
        done.record()
        return Launched(host, done)
