"""For which steps graphs are captured; that they say the same is in `test_runner_contract.py`."""

import pytest

from radixmesh.backends.torch_cuda.chunk_graphs import chunk_buckets

LLAMA_8B = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
QWEN_06B = 1024 * (2048 + 2 * 1024) + 2048 * 1024 + 3 * 1024 * 3072


@pytest.mark.parametrize(
    ("max_tokens", "elements", "first", "last"),
    [
        (8192, LLAMA_8B, 16, 512),  # beyond, an H100 took as long with graphs as without
        (8192, QWEN_06B, 16, 8192),
        (8192, 10_000, 16, 8192),
        (200, QWEN_06B, 16, 256),
        (3, QWEN_06B, 16, 16),
        (8192, 10**12, 16, 16),
    ],
)
def test_buckets_end_where_the_device_is_slower(
    max_tokens: int, elements: int, first: int, last: int
) -> None:
    buckets = chunk_buckets(max_tokens, elements)
    assert (buckets[0], buckets[-1]) == (first, last)
    assert list(buckets) == sorted(set(buckets))
    assert all(size % 16 == 0 for size in buckets)


def test_no_step_is_padded_to_far_more() -> None:
    buckets = chunk_buckets(8192, 1)
    for tokens in range(129, 8193):
        bucket = next(size for size in buckets if size >= tokens)
        assert bucket - tokens < max(128, tokens / 4)
