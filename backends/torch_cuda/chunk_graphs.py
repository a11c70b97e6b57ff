"""Steps with prefill chunks of few tokens, as captured CUDA graphs between their attentions.

A chunk's rows and lengths bound the launch of attention, so that is launched anew in every step. All else
knows tokens alone: what a layer does after its attention and the next one before its own is one graph for
each bucket of tokens. Without them the host would take longer to launch such a step than the device to run
it. Of more tokens the device takes longer anyway.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from ...engine.batch import ScheduleBatch
from ...engine.runner import RunnerCapacity
from .forward_batch import ForwardBatch, Layout, pack_pinned
from .graphs import aside, captured
from .step import Step
from .warm_batches import chunks_batch

# Tokens that graphs are captured for. From 128 on multiples of it, for matrix products are cut so.
_BUCKETS = (
    16, 32, 64, *range(128, 1024, 128), *range(1024, 4096, 256), *range(4096, 8193, 512),
)  # fmt: skip
# Tokens times elements of a layer's matrices that an H100 multiplies in the 0.4 ms for which a host of its
# kind launches a layer kernel by kernel
_HOST_BOUND = 1.3e11


def chunk_buckets(max_tokens: int, layer_elements: int) -> tuple[int, ...]:
    """Tokens that graphs are captured for: as many as a step can have, as long as the host would be slower.
    `layer_elements` are those of a layer's matrices."""
    worth = max(_HOST_BOUND / layer_elements, _BUCKETS[0])
    return tuple(size for size in _BUCKETS[: bisect_left(_BUCKETS, max_tokens) + 1] if size <= worth)


class ChunkGraphs:
    """The graphs of a runner on a GPU, and the memory in which they meet its attentions."""

    def __init__(self, step: Step, capacity: RunnerCapacity, device: torch.device) -> None:
        """Nothing is captured yet: pieces run as they are."""
        self._step, self._capacity, self._device = step, capacity, device
        self._buckets = chunk_buckets(capacity.max_step_tokens, step.decoder.layer_elements)
        self._nobody = chunks_batch([], capacity)
        largest = self._padding(self._buckets[-1])
        self._packed = pack_pinned(largest, self._nobody, device).to(device)
        batch = largest.unpack(self._packed)
        residual = step.embed(batch)
        q = step.decoder.queries(0, residual, batch, step.state.kv_pages)
        self._q, self._attended, self._hidden = q, torch.zeros_like(q.flatten(1)), torch.zeros_like(residual)
        self._pieces = {bucket: self._pieces_of(bucket) for bucket in self._buckets}

    def __len__(self) -> int:
        return sum(len(pieces) for pieces in self._pieces.values())

    def capture(self) -> None:
        """Capture all, the largest first, so that the smaller ones find their memory in the pool. Each runs
        once before, which loads what it needs."""
        pool = torch.cuda.graph_pool_handle()
        with aside(self._device):
            for bucket in tqdm(
                self._buckets[::-1], desc="capturing", unit="bucket", leave=False, dynamic_ncols=True
            ):
                pieces = self._pieces[bucket]
                layout = self._padding(bucket)
                self._keep(layout, pack_pinned(layout, self._nobody, self._device).to(self._device))
                for piece in pieces:
                    piece()
                torch.cuda.synchronize(self._device)
                self._pieces[bucket] = [captured(piece, pool)[0].replay for piece in pieces]

    def fits(self, batch: ScheduleBatch) -> bool:
        """Whether it has no more tokens than the largest bucket."""
        return batch.num_tokens <= self._buckets[-1]

    def layout(self, batch: ScheduleBatch) -> Layout:
        """Of a step that fits: as many tokens as its bucket."""
        bucket = next(size for size in self._buckets if size >= batch.num_tokens)
        return Layout.exact(batch, self._capacity, bucket)

    def run(self, layout: Layout, packed: Tensor, batch: ForwardBatch, count: int) -> Tensor:
        """Hidden states [count, embed] of a step packed by `layout`, of which `batch` are the fields;
        overwritten by the next step."""
        self._keep(layout, packed)
        *pieces, last = self._pieces[layout.tokens]
        for layer, piece in enumerate(pieces):
            piece()
            self._attended[:count] = self._step.decoder.attend(
                layer, self._q[:count], batch, self._step.state.kv_pages
            )
        last()
        return self._hidden[:count]

    def _keep(self, layout: Layout, packed: Tensor) -> None:
        """What each token has comes first in a packed step; graphs find it where it always lies."""
        words = layout.starts["cu_q_lens"]
        self._packed[:words].copy_(packed[:words])

    def _padding(self, bucket: int) -> Layout:
        """Of a step without rows, whose tokens write to the page that nobody has."""
        return Layout.exact(self._nobody, self._capacity, bucket)

    def _pieces_of(self, bucket: int) -> list[Callable[[], None]]:
        """What runs before, between and after the attentions of so many tokens."""
        decoder, kv_pages = self._step.decoder, self._step.state.kv_pages
        layout = self._padding(bucket)
        batch = layout.unpack(self._packed[: layout.size()])
        q, attended, hidden = self._q[:bucket], self._attended[:bucket], self._hidden[:bucket]
        residual = hidden  # until there is one

        def begin() -> None:
            nonlocal residual
            residual = self._step.embed(batch)
            q.copy_(decoder.queries(0, residual, batch, kv_pages))

        def between(layer: int) -> None:
            nonlocal residual
            residual = decoder.add(layer, attended, residual)
            q.copy_(decoder.queries(layer + 1, residual, batch, kv_pages))

        def end() -> None:
            hidden.copy_(decoder.final(decoder.add(decoder.num_layers - 1, attended, residual)))

        layers = range(decoder.num_layers - 1)
        return [begin, *(partial(between, layer) for layer in layers), end]
