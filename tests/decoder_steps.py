"""Steps that take two sequences through a decoder: in chunks, decoding, beside each other, padded."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radixmesh.kernels.paged_attention.rows import RaggedRows

PAGE = 4  # tokens
TOKENS = 20  # of a step, padding included
SEQUENCES = [np.random.default_rng(length).integers(3, 160, length, dtype=np.int32) for length in (40, 23)]
# each step's (sequence, tokens), decode rows first
STEPS = [[(0, 17)], [(0, 1), (1, 9)], [(1, 1), (0, 14)], [(0, 1), (1, 1)], [(0, 7), (1, 12)]]
SPARE = sum(-(-len(each) // PAGE) for each in SEQUENCES)  # the page that padding writes to
PAGES = np.random.default_rng(2).permutation(SPARE).astype(np.int32)
TABLES = [PAGES[:10], PAGES[10:]]


def plan(
    step: list[tuple[int, int]], done: list[int]
) -> tuple[NDArray[np.int32], NDArray[np.int32], RaggedRows]:
    """Tokens and positions [TOKENS], padded, and rows of one step after `done` tokens of each sequence."""
    ends = [done[sequence] + count for sequence, count in step]
    at = [np.arange(end - count, end) for end, (_, count) in zip(ends, step, strict=True)]
    slots = [TABLES[s][p // PAGE] * PAGE + p % PAGE for (s, _), p in zip(step, at, strict=True)]
    tables = [TABLES[s][: -(-end // PAGE)] for (s, _), end in zip(step, ends, strict=True)]
    pages = np.concatenate(tables)
    rows = RaggedRows(
        kv_slots=padded(slots, TOKENS, SPARE * PAGE),
        cu_q_lens=cumulative([count for _, count in step]),
        kv_lens=padded([ends], 3, 0),
        page_indices=padded([pages], len(PAGES), SPARE),
        page_offsets=cumulative([len(table) for table in tables]),
        num_rows=np.int32(len(step)),
        num_decode_rows=np.int32(sum(count == 1 for _, count in step)),
    )
    tokens = [SEQUENCES[s][p] for (s, _), p in zip(step, at, strict=True)]
    return padded(tokens, TOKENS, 0), padded(at, TOKENS, 0), rows


def padded(parts: Sequence[ArrayLike], size: int, filler: int) -> NDArray[np.int32]:
    joined = np.concatenate([np.asarray(part, np.int32) for part in parts])
    return np.pad(joined, (0, size - len(joined)), constant_values=filler)


def cumulative(counts: list[int]) -> NDArray[np.int32]:
    """Offsets of up to three rows; the rows of padding are empty."""
    return np.pad(np.cumsum([0, *counts]), (0, 3 - len(counts)), mode="edge").astype(np.int32)
