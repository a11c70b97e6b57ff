"""Prefill attention over pages on a GPU beside torch's own on gathered keys and values: checked, then timed.

    PYTHONPATH=src python benchmarks/gpu_prefill_attention.py

The shape is Llama-3.1-8B's in bfloat16. Errors are against torch in float32; times are medians of replays of
a captured graph; shares are of an 8192^3 matrix product in the same process. Last comes what the first call
of cuDNN at a new length costs the host, which makes a plan for it.
"""

import time
from collections.abc import Callable

import torch
from gpu_kernels import DEVICE, SHAPES, Batch, attention_flops, batch, ceilings, error, seconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from radixmesh.kernels.paged_attention import triton as attention

SHAPE = SHAPES[0]
PAGE = 64
FRESH = {"one chunk of 8,128": (1, 8128), "8 chunks of 1,024": (8, 1024)}
RAGGED = [(300, 300), (5, 900), (130, 2000), (64, 64), (1000, 1777)]


def gather(given: Batch, row: int, length: int) -> tuple[Tensor, Tensor]:
    """A row's keys and values in layer 0, each [1, kv_heads, length, head_dim]; all rows are as long."""
    pages = -(-length // PAGE)
    mine = given.rows.page_indices[row * pages : (row + 1) * pages]
    kv = given.pool.transpose(0, 1).index_select(1, mine).flatten(1, 2)[None, :, :length]
    keys, values = kv.split(SHAPE.head_dim, dim=-1)
    return keys, values


def attend(q: Tensor, keys: Tensor, values: Tensor, backend: SDPBackend) -> Tensor:
    """Causally, of q [tokens, heads, head_dim]."""
    with sdpa_kernel(backend):
        found = scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys, values, is_causal=True, enable_gqa=True
        )
    return found[0].transpose(0, 1)


def merged(given: Batch) -> Tensor:
    """A chunk of 2,048 after 6,144 keys by two calls of cuDNN, put together by their sums."""
    q, (keys, values) = given.q.transpose(0, 1)[None], gather(given, 0, 8192)

    def part(at: slice, causal: bool) -> tuple[Tensor, Tensor]:
        return torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, keys[:, :, at], values[:, :, at], None, True, 0.0, causal, False
        )[:2]

    (before, sum_before), (own, sum_own) = part(slice(0, 6144), False), part(slice(6144, 8192), True)
    share = torch.sigmoid(sum_own.flatten(2) - sum_before.flatten(2))[0, :, :, None].to(own.dtype)
    return torch.lerp(before[0], own[0], share).transpose(0, 1)


def truth(given: Batch, lengths: list[tuple[int, int]]) -> Tensor:
    """Of all rows in layer 0, in float32."""
    parts, at, page = [], 0, 0
    for queries, length in lengths:
        mine = given.rows.page_indices[page : page + -(-length // PAGE)]
        kv = given.pool[mine].transpose(0, 1).flatten(1, 2)[:, :length].float()
        keys, values = kv.repeat_interleave(SHAPE.heads // SHAPE.kv_heads, 0).split(SHAPE.head_dim, dim=-1)
        q = given.q[at : at + queries].transpose(0, 1).float()
        mask = torch.ones(queries, length, dtype=torch.bool, device=DEVICE).tril(length - queries)
        heads = [scaled_dot_product_attention(q[i], keys[i], values[i], mask) for i in range(SHAPE.heads)]
        parts.append(torch.stack(heads, 1))
        at, page = at + queries, page + len(mine)
    return torch.cat(parts)


def report(name: str, call: Callable[[], Tensor], want: Tensor, flops: float, limit: float) -> None:
    """A line of the table; of what torch cannot do, why."""
    try:
        found, took = error(call(), want), seconds([call])
    except RuntimeError as refused:
        print(f"  {name:24s} {str(refused).splitlines()[0][:90]}", flush=True)
        return
    rate = flops / took
    line = f"{took * 1e6:8.1f} us {rate / 1e12:6.1f} TFLOP/s {rate / limit:6.1%}, error {found:.1e}"
    print(f"  {name:24s} {line}", flush=True)
    if not found <= 1e-2:
        raise SystemExit(f"{name} is wrong")


def run_fresh(name: str, rows: int, length: int, limit: float) -> None:
    """Whole prompts."""
    lengths = [(length, length)] * rows
    given, flops = batch(SHAPE, lengths, PAGE), attention_flops(SHAPE, lengths)
    want, queries = truth(given, lengths), given.q.split(length)
    contiguous = [gather(given, row, length) for row in range(rows)]

    def by(backend: SDPBackend, gathering: bool) -> Tensor:
        each = [gather(given, row, length) for row in range(rows)] if gathering else contiguous
        return torch.cat([attend(q, *kv, backend) for q, kv in zip(queries, each, strict=True)])

    print(name, flush=True)
    report("over pages", given.calls(attention.ragged_paged_attention)[0], want, flops, limit)
    report("cuDNN, no pages", lambda: by(SDPBackend.CUDNN_ATTENTION, False), want, flops, limit)
    report("FlashAttention, no pages", lambda: by(SDPBackend.FLASH_ATTENTION, False), want, flops, limit)
    report("cuDNN after gathering", lambda: by(SDPBackend.CUDNN_ATTENTION, True), want, flops, limit)


def run_cached(limit: float) -> None:
    """A chunk after cached keys, and a ragged batch."""
    for name, lengths in {"2,048 after 6,144": [(2048, 8192)], "ragged": RAGGED}.items():
        given, flops = batch(SHAPE, lengths, PAGE), attention_flops(SHAPE, lengths)
        want = truth(given, lengths)
        print(name, flush=True)
        report("over pages", given.calls(attention.ragged_paged_attention)[0], want, flops, limit)
        if len(lengths) == 1:
            report("two of cuDNN", lambda given=given: merged(given), want, flops, limit)


def run_new_lengths() -> None:
    """The first and the second call of cuDNN at some lengths."""
    given = batch(SHAPE, [(8128, 8128)], PAGE)
    for length in (5000, 4999, 3001):
        times = []
        for _ in range(2):
            torch.cuda.synchronize()
            started = time.perf_counter()
            attend(given.q[:length], *gather(given, 0, length), SDPBackend.CUDNN_ATTENTION)
            torch.cuda.synchronize()
            times.append((time.perf_counter() - started) * 1000)
        print(f"cuDNN at {length} tokens: first {times[0]:.1f} ms, then {times[1]:.2f} ms", flush=True)


def main() -> None:
    """Check, time."""
    torch.manual_seed(0)
    limit = ceilings().flops_per_s
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}: matmul {limit / 1e12:.0f} TFLOP/s", flush=True)
    for case, (rows, length) in FRESH.items():
        run_fresh(case, rows, length, limit)
    run_cached(limit)
    run_new_lengths()


if __name__ == "__main__":
    main()
