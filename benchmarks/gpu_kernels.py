"""Check every Triton kernel against its PyTorch twin on a GPU, then time it.

    PYTHONPATH=src python benchmarks/gpu_kernels.py [--only NAME] [--page-size N] [--sweep]

Needs torch, triton and numpy, nothing else. Times are medians of replays of a captured graph, so that
launches of the host do not count, over as many layers as it takes to leave the L2 cache behind. Shares
are of what the card does in the same process: a device-to-device copy (bytes read and written), and an
8192^3 bfloat16 matrix product. `--sweep` tries sizes for attention and prints the fastest as entries for
`kernels/tuned/ARCHITECTURE.json`.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from radixmesh.kernels.gated_activation import torch_ref as gate_twin
from radixmesh.kernels.gated_activation import triton as gate
from radixmesh.kernels.paged_attention import torch_ref as attention_twin
from radixmesh.kernels.paged_attention import triton as attention
from radixmesh.kernels.paged_attention import triton_prefill as prefill
from radixmesh.kernels.paged_attention.rows import RaggedRows
from radixmesh.kernels.rms_norm import torch_ref as norm_twin
from radixmesh.kernels.rms_norm import triton as norm
from radixmesh.kernels.rope_kv_write import torch_ref as rope_twin
from radixmesh.kernels.rope_kv_write import triton as rope
from radixmesh.kernels.sampling import torch_ref as sampling_twin
from radixmesh.kernels.sampling import triton as sampling
from radixmesh.kernels.tuning import target_of

DEVICE = torch.device("cuda")
LEAST_BYTES = 400 << 20  # that one timing touches before it comes back to the same ones


class Shape(NamedTuple):
    """What the kernels see of a model."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    mlp: int
    vocab: int
    qk_norm: bool


SHAPES = [
    Shape("Llama-3.1-8B", 32, 8, 128, 4096, 14336, 128256, False),
    Shape("Qwen3-0.6B", 16, 8, 128, 1024, 3072, 151936, True),
]


class Ceilings(NamedTuple):
    """What this card does at best, in this process."""

    bytes_per_s: float
    flops_per_s: float


def seconds(calls: list[Callable[[], Any]], replays: int = 15) -> float:
    """Time of one of `calls`, all of which one captured graph runs one after the other."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times)[len(times) // 2] / len(calls)


def ceilings() -> Ceilings:
    """Measure them, without a graph, in which a copy is slower."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / _eager_seconds(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    return Ceilings(copy, 2 * 8192**3 / _eager_seconds(lambda: a @ b))


def _eager_seconds(call: Callable[[], Any], repeats: int = 10) -> float:
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def error(got: Tensor, want: Tensor) -> float:
    """Relative, by norms; not a number if either has one."""
    got, want = got.float(), want.float()
    return ((got - want).norm() / want.norm()).item()


def check(name: str, got: Tensor, want: Tensor, limit: float) -> None:
    """Print and insist."""
    found = error(got, want)
    print(f"check {name}: error {found:.1e}", flush=True)
    if not found <= limit:
        raise SystemExit(f"{name} is wrong: {found} > {limit}")


def report(name: str, took: float, ceiling: Ceilings, *, moved: float = 0, flops: float = 0) -> None:
    """A line of the table."""
    line = f"{name:66s} {took * 1e6:10.1f} us"
    if moved:
        line += f" {moved / took / 1e9:8.0f} GB/s = {moved / took / ceiling.bytes_per_s:5.1%} of copy"
    if flops:
        line += f" {flops / took / 1e12:8.1f} TFLOP/s = {flops / took / ceiling.flops_per_s:5.1%} of matmul"
    print(line, flush=True)


class Batch(NamedTuple):
    """A batch over a pool of several layers."""

    q: Tensor
    pool: Tensor
    rows: RaggedRows
    pages: int  # of a layer
    layers: int

    def calls(self, attend: Callable[..., Tensor], **options: Any) -> list[Callable[[], Tensor]]:
        """A call for each layer."""

        options["scale"] = self.q.shape[2] ** -0.5
        return [
            partial(attend, self.q, self.pool, self.rows, first_page=layer * self.pages, **options)
            for layer in range(self.layers)
        ]


def batch(
    shape: Shape, lengths: list[tuple[int, int]], page_size: int, dtype: torch.dtype = torch.bfloat16
) -> Batch:
    """Rows of (query length, keys), decode rows first, on scattered pages of random numbers."""
    counts = [-(-keys // page_size) for _, keys in lengths]
    pages = sum(counts) + 1
    layer_bytes = pages * shape.kv_heads * page_size * 2 * shape.head_dim * dtype.itemsize
    layers = max(2, min(32, -(-LEAST_BYTES // layer_bytes)))
    pool = torch.empty(
        layers * pages, shape.kv_heads, page_size, 2 * shape.head_dim, dtype=dtype, device=DEVICE
    )
    for part in pool.split(4096):
        part.copy_(torch.randn(part.shape, dtype=torch.bfloat16, device=DEVICE))

    def words(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int32, device=DEVICE)

    starts = list(itertools.accumulate((queries for queries, _ in lengths), initial=0))
    rows = RaggedRows(
        kv_slots=words([0] * starts[-1]),
        cu_q_lens=words(starts),
        kv_lens=words([keys for _, keys in lengths]),
        page_indices=torch.randperm(pages - 1, device=DEVICE).int(),
        page_offsets=words(list(itertools.accumulate(counts, initial=0))),
        num_rows=len(lengths),
        num_decode_rows=sum(queries == 1 for queries, _ in lengths),
    )
    q = torch.randn(starts[-1], shape.heads, shape.head_dim, dtype=torch.bfloat16, device=DEVICE)
    return Batch(q, pool, rows, pages, layers)


def shared(given: Batch, members: int, pages: int) -> Batch:
    """The batch, each `members` of whose decode rows are a group that begins with the same pages."""
    table, offsets, count = given.rows.page_indices.clone(), given.rows.page_offsets, given.rows.num_rows
    row = torch.arange(count, device=DEVICE)
    first = row - row % members
    at = torch.arange(pages, device=DEVICE)
    table[offsets[row, None] + at] = table[offsets[first, None] + at]
    rows = given.rows._replace(
        page_indices=table,
        group_rows=torch.where(row == first, (count - first).clamp(max=members), 0).int(),
        shared_pages=torch.full_like(row, pages).int(),
    )
    return given._replace(rows=rows)


def check_attention(shape: Shape, page_size: int) -> None:
    """Ragged batches with all options, against the twin on the same numbers in float32."""
    mixed = [(1, 1000), (1, 7), (1, 4097), (1, 64), (300, 300), (5, 900), (130, 2000), (64, 64)]
    many = [(1, 17 * row % 700 + 1) for row in range(150)]
    sinks = torch.randn(shape.heads, device=DEVICE)
    options: list[dict[str, Any]] = [{}, {"window": 100}, {"soft_cap": 20.0}, {"sinks": sinks, "window": 900}]
    groups = [(1, 2049 + 37 * row % 200) for row in range(72)]
    for name, lengths in (("mixed", mixed), ("decode", many), ("decode, shared", groups)):
        for dtype in (torch.bfloat16, torch.float8_e4m3fn):
            given = batch(shape, lengths, page_size, dtype)
            if name == "decode, shared":
                given = shared(given, 20, 2048 // page_size)
            for each in options if dtype == torch.bfloat16 else options[:1]:
                if dtype.itemsize == 1:
                    each = each | {"k_scale": 0.5, "v_scale": 2.0}
                got = given.calls(attention.ragged_paged_attention, **each)[1]()
                wide = given._replace(q=given.q.float())
                want = wide.calls(attention_twin.ragged_paged_attention, **each)[1]()
                check(f"attention, {name}, {dtype}, {', '.join(each) or 'plain'}", got, want, 1e-2)


def decode_cases() -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Rows and contexts."""
    for context, counts in ((1088, (1, 8, 32, 64, 128, 256)), (8192, (1, 8, 32, 64))):
        for count in counts:
            yield f"{count} rows of {context}", [(1, context)] * count
    yield "64 rows of 16 to 8,192", [(1, 16 + 8176 * row // 63) for row in range(64)]
    yield "1 row of 65,536", [(1, 65536)]


def prefill_cases() -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Chunks."""
    yield "one chunk of 8,128", [(8128, 8128)]
    yield "a chunk of 2,048 after 6,144", [(2048, 8192)]
    yield "16 chunks of 512", [(512, 512)] * 16
    yield "32 chunks of 64 after 2,048", [(64, 2112)] * 32


SHARED_CASES = [(256, 16, 2048, 96), (128, 128, 4096, 96), (64, 16, 2048, 96), (8, 8, 32768, 96)]


def time_shared(shape: Shape, page_size: int, ceiling: Ceilings) -> None:
    """Decode rows of which so many at a time share so many keys, beside some of their own: read once for a
    group, and by each row."""
    for rows, members, tokens, own in SHARED_CASES:
        lengths = [(1, tokens + own)] * rows
        given = shared(batch(shape, lengths, page_size), members, tokens // page_size)
        alone = given._replace(rows=given.rows._replace(group_rows=None, shared_pages=None))
        keys = rows // members * tokens + rows * own
        for how, each in (("once a group", given), ("by each row", alone)):
            took = seconds(each.calls(attention.ragged_paged_attention))
            name = f"{shape.name} decode, {rows} rows, {members} share {tokens:,} keys, read {how}"
            report(name, took, ceiling, moved=keys * shape.kv_heads * 4 * shape.head_dim)


def attention_flops(shape: Shape, lengths: list[tuple[int, int]]) -> float:
    """Of the causal half only."""
    pairs = sum(queries * keys - queries * (queries - 1) / 2 for queries, keys in lengths)
    return 4 * pairs * shape.heads * shape.head_dim


def time_attention(shape: Shape, page_size: int, ceiling: Ceilings) -> None:
    """Decode by bytes, prefill by operations; beside it torch's own on contiguous tensors."""
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        for name, lengths in decode_cases():
            given = batch(shape, lengths, page_size, dtype)
            moved = sum(keys for _, keys in lengths) * shape.kv_heads * 2 * shape.head_dim * dtype.itemsize
            took = seconds(given.calls(attention.ragged_paged_attention))
            report(f"{shape.name} decode, {name}, {str(dtype)[6:]}", took, ceiling, moved=moved)
    for name, lengths in prefill_cases():
        given = batch(shape, lengths, page_size)
        took = seconds(given.calls(attention.ragged_paged_attention)[:2])
        report(f"{shape.name} prefill, {name}", took, ceiling, flops=attention_flops(shape, lengths))
    q, k, v = (
        torch.randn(1, heads, 8128, shape.head_dim, dtype=torch.bfloat16, device=DEVICE)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    took = seconds([
        lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    ])  # fmt: skip
    flops = attention_flops(shape, [(8128, 8128)])
    report(f"{shape.name} torch scaled_dot_product_attention of 8,128", took, ceiling, flops=flops)


class Small(NamedTuple):
    """A kernel that is bound by the bytes it moves; `kernel` and `twin` take the index of an input set."""

    name: str
    moved: int
    kernel: Callable[[int], Tensor]
    twin: Callable[[int], Tensor]


def small_kernels(shape: Shape, tokens: int, sets: int) -> list[Small]:
    """Norms and gate."""
    bf16 = {"dtype": torch.bfloat16, "device": DEVICE}
    x = torch.randn(sets, tokens, shape.hidden, **bf16)
    residual = torch.zeros(2, sets, tokens, shape.hidden, **bf16)  # the kernel's and the twin's
    weight = torch.randn(shape.hidden, **bf16)
    gates = torch.randn(sets, tokens, 2 * shape.mlp, **bf16)
    size = tokens * shape.hidden * 2
    return [
        Small(
            "RMSNorm", 2 * size, lambda i: norm.rms_norm(x[i], weight, 1e-6),
            lambda i: norm_twin.rms_norm(x[i], weight, 1e-6),
        ),
        Small(
            "RMSNorm onto a residual", 3 * size,
            lambda i: norm.rms_norm(x[i], weight, 1e-6, onto=residual[0][i]),
            lambda i: norm_twin.rms_norm(x[i], weight, 1e-6, onto=residual[1][i]),
        ),
        Small(
            "gate", 3 * tokens * shape.mlp * 2, lambda i: gate.gated_activation(gates[i], "silu"),
            lambda i: gate_twin.gated_activation(gates[i], "silu"),
        ),
    ]  # fmt: skip


def rope_kernel(shape: Shape, tokens: int, sets: int) -> Small:
    """Rope and KV write; the results are q and all pages, so that both are compared."""
    bf16 = {"dtype": torch.bfloat16, "device": DEVICE}
    heads, kv_heads, dim = shape.heads, shape.kv_heads, shape.head_dim
    qkv = torch.randn(sets, tokens, heads + 2 * kv_heads, dim, **bf16)
    pools = torch.zeros(2, tokens // 16 + 2, kv_heads, 16, 2 * dim, **bf16)
    slots = torch.randperm(tokens, device=DEVICE).int()
    table, positions = torch.randn(9000, dim, device=DEVICE), torch.arange(tokens, device=DEVICE).int()
    norms = rope_twin.HeadNorms(torch.randn(dim, **bf16), torch.randn(dim, **bf16), 1e-6, 0.0)

    def write(operation: Callable[..., Tensor], pages: Tensor, index: int) -> Tensor:
        q, k, v = qkv[index].split([heads, kv_heads, kv_heads], dim=1)
        return operation(q, k, v, table, positions, pages, slots, norms=norms if shape.qk_norm else None)

    write(rope.rope_and_write, pools[0], 0)
    write(rope_twin.rope_and_write, pools[1], 0)
    check(f"{shape.name} pages after rope and KV write of {tokens} tokens", pools[0], pools[1], 1e-2)
    moved = 2 * tokens * (heads + 2 * kv_heads) * dim * 2
    kernel = partial(write, rope.rope_and_write, pools[0])
    return Small("rope and KV write", moved, kernel, partial(write, rope_twin.rope_and_write, pools[1]))


def run_small(shape: Shape, ceiling: Ceilings) -> None:
    """Check, then time, for few and for many tokens."""
    for tokens in (1, 32, 256, 8128):
        sets = max(2, min(32, LEAST_BYTES // (tokens * shape.mlp * 4)))
        for each in [*small_kernels(shape, tokens, sets), rope_kernel(shape, tokens, sets)]:
            check(f"{shape.name} {each.name} of {tokens} tokens", each.kernel(0), each.twin(0), 1e-2)
            took = seconds([partial(each.kernel, index) for index in range(sets)])
            report(f"{shape.name} {each.name}, {tokens} tokens", took, ceiling, moved=each.moved)


SAMPLING: dict[str, dict[str, float]] = {
    "temperature only": {},
    "top-p 0.95": {"top_p": 0.95},
    "top-k 20": {"top_k": 20},
    "top-k 20, top-p 0.95": {"top_k": 20, "top_p": 0.95, "temperature": 0.6},
}


def run_sampling(shape: Shape, ceiling: Ceilings) -> None:
    """Greedy and drawn tokens; the bytes are one pass over the logits. torch's argmax and sort beside it."""
    for rows in (1, 32, 256):
        logits = 3 * torch.randn(rows, shape.vocab, device=DEVICE)
        if not torch.equal(sampling.greedy(logits), sampling_twin.greedy(logits)):
            raise SystemExit("greedy sampling is wrong")
        words = torch.arange(rows, dtype=torch.int32, device=DEVICE)
        calls = {"greedy": partial(sampling.greedy, logits), "torch argmax": partial(logits.argmax, -1)}
        for name, asked in SAMPLING.items():
            options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | asked
            arrays = [torch.full((rows,), value, device=DEVICE) for value in options.values()]
            arrays[1] = arrays[1].int()
            args = (logits, *arrays, words, words)
            same = (sampling.choose_tokens(*args) == sampling_twin.choose_tokens(*args)).float().mean()
            print(f"check sampling, {name}, {rows} rows: {same.item():.1%} as the twin", flush=True)
            if same < 0.98:  # sums differ in their last bits, and with them a cut's last token
                raise SystemExit(f"sampling is wrong: {name}")
            calls[f"sampling, {name}"] = partial(sampling.choose_tokens, *args)
        calls["torch sort"] = partial(logits.sort, -1)
        for name, call in calls.items():
            took = seconds([call])
            report(f"{shape.name} {name}, {rows} rows", took, ceiling, moved=logits.numel() * 4)


def sweep(shape: Shape, page_size: int, dtype: torch.dtype) -> None:
    """The fastest sizes of attention, by the sum of what each takes over a few cases relative to the best."""
    grid = [
        attention.DecodeSizes(*each)
        for each in itertools.product((32, 64, 128), (1, 2, 3, 4), (2, 4, 8), (5, 7, 9), (1, 2))
    ]
    cases = {16: [(1, 1088), (8, 1088)], 64: [(32, 1088), (32, 8192)], 256: [(128, 1088)]}
    for lanes, counts in cases.items():
        batches = [batch(shape, [(1, keys)] * rows, page_size, dtype) for rows, keys in counts]
        best("decode", grid, batches, {"head_dim": shape.head_dim, "kv_bytes": dtype.itemsize, "rows": lanes})
    chunks = [[(8128, 8128)], [(512, 512)] * 16, [(2048, 8192)]]
    tiles = itertools.product((64, 128), (32, 64, 128), (4, 8), (3, 5))
    best(
        "prefill", [prefill.PrefillSizes(*each) for each in tiles],
        [batch(shape, each, page_size, dtype) for each in chunks],
        {"head_dim": shape.head_dim, "kv_bytes": dtype.itemsize},
    )  # fmt: skip


def best(kind: str, grid: list[Any], batches: list[Batch], case: dict[str, int]) -> None:
    """Try all sizes and print an entry for the tuning table."""
    module = {"decode": attention, "prefill": prefill}[kind]
    taken: dict[Any, list[float]] = {}
    for sizes in grid:
        try:
            with patch.object(module, f"{kind}_sizes", lambda *_, sizes=sizes: sizes):
                each = [seconds(given.calls(attention.ragged_paged_attention)[:16], 5) for given in batches]
        except Exception as refused:  # too much shared memory, mostly
            print(f"{kind} {sizes}: {str(refused).splitlines()[0][:90]}", flush=True)
            continue
        taken[sizes] = each
        print(f"{kind} {sizes}: {', '.join(f'{each * 1e6:.1f}' for each in taken[sizes])} us", flush=True)
    least = [min(column) for column in zip(*taken.values(), strict=True)]
    score = {sizes: sum(t / low for t, low in zip(each, least, strict=True)) for sizes, each in taken.items()}
    for sizes in sorted(score, key=lambda each: score[each])[:5]:
        entry = case | sizes._asdict()
        print(f"{kind}_attention {score[sizes] / len(least):.3f} {json.dumps(entry)}", flush=True)


def main() -> None:
    """Parse, check, time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", choices=["attention", "shared", "small", "sampling"], help="these kernels alone"
    )
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--sweep", action="store_true", help="search sizes of attention instead")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float8_e4m3fn"], default="bfloat16", help="of --sweep's pool"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, {target_of(DEVICE)}, torch {torch.__version__}", flush=True)
    if args.sweep:
        return sweep(SHAPES[0], args.page_size, getattr(torch, args.dtype))
    ceiling = ceilings()
    print(
        f"copy {ceiling.bytes_per_s / 1e12:.2f} TB/s, matmul {ceiling.flops_per_s / 1e12:.0f} TFLOP/s",
        flush=True,
    )
    for shape in SHAPES:
        if args.only in (None, "attention", "shared"):
            check_attention(shape, args.page_size)
        if args.only in (None, "attention"):
            time_attention(shape, args.page_size, ceiling)
        if args.only in (None, "shared"):
            time_shared(shape, args.page_size, ceiling)
        if args.only in (None, "small"):
            run_small(shape, ceiling)
        if args.only in (None, "sampling"):
            run_sampling(shape, ceiling)


if __name__ == "__main__":
    main()
