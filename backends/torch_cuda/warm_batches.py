"""Made-up steps, run before the first real one so that kernels are compiled and memory is in place."""

from collections.abc import Iterator, Sequence

import numpy as np

from ...engine.batch import SamplingArrays, SamplingVariant, ScheduleBatch
from ...engine.runner import RunnerCapacity


def chunks_batch(
    lengths: Sequence[int], capacity: RunnerCapacity, variant: SamplingVariant = SamplingVariant.GREEDY
) -> ScheduleBatch:
    """Prefill of whole prompts of so many tokens, which share the pool's first pages. Without lengths a
    step of no rows."""
    rows, size = len(lengths), capacity.page_size
    counts = np.asarray(lengths, np.int32)
    pages = -(-counts // size)
    positions = _arange([np.arange(each) for each in lengths])
    none, zeros, ones = _i32([]), np.zeros(rows, np.float32), np.ones(rows, np.float32)
    sampling = SamplingArrays(
        slots=np.arange(rows, dtype=np.int32),
        temperature=ones,
        top_k=_i32([0] * rows),
        top_p=ones,
        min_p=zeros,
        seeds=np.zeros(rows, np.uint32),
        indices=counts,
        frequency_penalty=zeros,
        presence_penalty=zeros,
        repetition_penalty=ones,
        prompt_lens=counts,
        bias_rows=none,
        bias_ids=none,
        bias_values=np.zeros(0, np.float32),
    )
    return ScheduleBatch(
        step=0,
        rows=(),
        sampled=(),
        variant=variant,
        num_decode_rows=0,
        token_ids=np.zeros_like(positions),
        positions=positions,
        kv_slots=positions,
        cu_q_lens=_offsets(counts),
        kv_lens=counts,
        page_indices=_arange([np.arange(each) for each in pages]),
        page_offsets=_offsets(pages),
        logits_positions=_offsets(counts)[1:] - 1,
        logits_rows=np.arange(rows, dtype=np.int32),
        constrained=none,
        sampling=sampling,
    )


def eager_batches(capacity: RunnerCapacity, context_length: int) -> Iterator[ScheduleBatch]:
    """Steps without graphs that between them need every kernel: one long prompt, and many short ones."""
    tokens = min(capacity.max_step_tokens, capacity.num_pages * capacity.page_size)
    yield chunks_batch([min(tokens, context_length)], capacity)
    rows = min(16, capacity.max_running_requests)
    while True:
        length = max(min(tokens // rows, capacity.page_size), 1)
        for variant in SamplingVariant:
            yield chunks_batch([length] * rows, capacity, variant)
        if rows == capacity.max_running_requests:
            return
        rows = min(rows * 4, capacity.max_running_requests)


def _i32(values: Sequence[int]) -> np.ndarray:
    return np.asarray(values, np.int32)


def _arange(pieces: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([_i32([]), *pieces]).astype(np.int32)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
