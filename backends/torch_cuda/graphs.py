"""Decode steps as captured CUDA graphs: the host launches one graph, not hundreds of kernels.

One graph for each bucket of rows and each sampling variant that it can hold, and a few for rows that share
pages; all draw on one memory pool. What changes from step to step lies in one array that every step is copied
into; what a graph hands out is overwritten by the next.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ...engine.batch import SamplingVariant, ScheduleBatch
from ...engine.runner import RunnerCapacity
from .forward_batch import Layout, pack_pinned, worth_sharing
from .sampler import Sampled
from .step import Step
from .warm_batches import chunks_batch

_Result = TypeVar("_Result")
_CAPTURED = (SamplingVariant.GREEDY, SamplingVariant.SAMPLE)


class _Graph(NamedTuple):
    """A captured step, and where it leaves its results."""

    layout: Layout
    graph: torch.cuda.CUDAGraph
    result: tuple[Tensor, Sampled]  # hidden states [bucket, embed], and what was sampled


def decode_buckets(max_rows: int) -> tuple[int, ...]:
    """Rows that graphs are captured for: 1, 2, 4, multiples of 8, and from 32 on four sizes an octave."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < max_rows:
        sizes.append(sizes[-1] + max(8, 1 << sizes[-1].bit_length() - 3))
    return (*(size for size in sizes if size < max_rows), max_rows)


def sharing_buckets(max_rows: int) -> tuple[int, ...]:
    """Rows that graphs are captured for whose rows share pages: two sizes an octave."""
    sizes = (each << power for power in range(3, max_rows.bit_length()) for each in (2, 3))
    return (*(size for size in sizes if size < max_rows), max_rows)


def captured_layouts(capacity: RunnerCapacity) -> list[Layout]:
    """Of the steps that become graphs, the largest first."""
    rows = capacity.max_running_requests
    steps = [(bucket, False) for bucket in decode_buckets(rows)]
    steps += [(bucket, True) for bucket in sharing_buckets(rows)]
    return [
        Layout.decode(bucket, variant, capacity, shares)
        for bucket, shares in sorted(steps, reverse=True)
        for variant in reversed(_CAPTURED)
    ]


class DecodeGraphs:
    """The captured graphs of a runner on a GPU."""

    def __init__(self, step: Step, capacity: RunnerCapacity, device: torch.device) -> None:
        self._step, self._capacity, self._device = step, capacity, device
        rows = capacity.max_running_requests
        self._buckets = {False: decode_buckets(rows), True: sharing_buckets(rows)}
        largest = Layout.decode(rows, _CAPTURED[-1], capacity, shares=True)
        self._packed = torch.zeros(largest.size(), dtype=torch.int32, device=device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, bool, SamplingVariant], _Graph] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, quiet: bool = False) -> None:
        """Capture all, the largest first, so that the smaller ones find their memory in the pool. Each step
        runs once before, which loads what it needs."""
        layouts = captured_layouts(self._capacity)
        with aside(self._device):
            for layout in tqdm(
                layouts, desc="capturing", unit="graph", leave=False, dynamic_ncols=True, disable=quiet
            ):
                self._graphs[layout.rows, layout.shares, layout.variant] = self._capture(layout)

    def fits(self, batch: ScheduleBatch) -> bool:
        """Whether every row has one token and samples: decode rows, and chunks whose rest was cached."""
        return len(batch.kv_lens) == len(batch.logits_rows) == batch.num_tokens

    def replay(self, batch: ScheduleBatch) -> tuple[Tensor, Sampled]:
        """Launch a step. Returns its hidden states and what was sampled, with the bucket's rows; both are
        overwritten by the next step. For a variant that is not captured what was sampled is not to be
        used, and neither are the slots."""
        shares = worth_sharing(batch, self._capacity.page_size)
        bucket = next(size for size in self._buckets[shares] if size >= batch.num_tokens)
        captured = batch.variant if batch.variant in _CAPTURED else SamplingVariant.GREEDY
        found = self._graphs[bucket, shares, captured]
        self._fill(found.layout, batch)
        found.graph.replay()
        return found.result

    def _fill(self, layout: Layout, batch: ScheduleBatch) -> None:
        packed = pack_pinned(layout, batch, self._device)
        self._packed[: len(packed)].copy_(packed, non_blocking=True)

    def _capture(self, layout: Layout) -> _Graph:
        batch = layout.unpack(self._packed[: layout.size()])
        self._fill(layout, chunks_batch([], self._capacity))
        self._step.sample(self._step.logits(self._step.hidden(batch), batch), batch, layout.variant)
        torch.cuda.synchronize(self._device)

        def run() -> tuple[Tensor, Sampled]:
            hidden = self._step.hidden(batch)
            return hidden, self._step.sample(self._step.logits(hidden, batch), batch, layout.variant)

        return _Graph(layout, *captured(run, self._pool))


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """A stream of its own, as capturing wants."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def captured(run: Callable[[], _Result], pool: Any) -> tuple[torch.cuda.CUDAGraph, _Result]:
    """A graph of what `run` launches, and what it returned: tensors that a replay fills again."""
    # not torch.cuda.graph(), which may collect Python's garbage before each of many captures
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # NCCL's own thread may go on
    try:
        result = run()
    finally:
        graph.capture_end()
    return graph, result
