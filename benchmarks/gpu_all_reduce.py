"""The sum over two GPUs: whether each way of making it is right, and what it takes.

    python benchmarks/gpu_all_reduce.py [--seconds 60] [--json FILE]

Starts both ranks itself and ends them when one fails or the time is over. Ways: NCCL's all-reduce; torch's
one-shot and two-shot kernels over symmetric memory; ours (kernels/all_reduce), with the residual added too
(the others' figures have that addition as a second kernel).

    check     sums of changing sizes against both ranks' numbers, eagerly and in replayed graphs, one rank or
              the other held up at random; counts wrong elements, of which there must be none
    time      microseconds of one sum of rows x 4096 bfloat16 in a graph of 64: alone, and behind a product of
              [rows, 2048] with [2048, 4096] in excess of the product alone, as a decode step has them
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from radixmesh.backends.torch_cuda.rank_sums import open_inbox
from radixmesh.backends.torch_cuda.ranks import Ranks
from radixmesh.kernels.all_reduce.torch_ref import all_reduce_add as nccl_add
from radixmesh.kernels.all_reduce.triton import all_reduce_add

EMBED, LARGEST = 4096, 4096  # columns; rows
CHECKED = (1, 2, 7, 8, 32, 33, 100, 128, 256)  # rows
BLOCKS = (512, 1024)  # elements a program, beside the product's
TIMED = (1, 8, 32, 128, 256, 512, 1024, 4096)
Sum = Callable[[Tensor, Tensor], Tensor]  # (share, residual) to residual + sum


def ways(ranks: Ranks, dtype: torch.dtype, device: torch.device) -> dict[str, Sum]:
    """Each way of summing. torch's kernels want the share in symmetric memory, where a product could have
    put it; they get it copied when `share` does not lie there."""
    import torch.distributed._symmetric_memory as symmetric

    group = dist.group.WORLD.group_name
    inboxes = {"ours": open_inbox(ranks, 1024 * EMBED, dtype, device)}
    for block in BLOCKS if dtype == torch.bfloat16 else ():
        inboxes[f"ours, {block}"] = open_inbox(ranks, 1024 * EMBED, dtype, device, block)
    ranks.wait()
    buffer = symmetric.empty(LARGEST * EMBED, dtype=dtype, device=device)
    symmetric.rendezvous(buffer, dist.group.WORLD)

    def staged(share: Tensor) -> Tensor:
        return buffer[: share.numel()].copy_(share.view(-1))

    def one_shot(share: Tensor, residual: Tensor) -> Tensor:
        out = torch.empty_like(share).view(-1)
        torch.ops.symm_mem.one_shot_all_reduce_out(staged(share), "sum", group, out)
        return residual + out.view_as(residual)

    def two_shot(share: Tensor, residual: Tensor) -> Tensor:
        return residual + torch.ops.symm_mem.two_shot_all_reduce_(staged(share), "sum", group).view_as(
            residual
        )

    return {
        "nccl": nccl_add,
        "one-shot": one_shot,
        "two-shot": two_shot,
        **{name: partial(all_reduce_add, inbox=inbox) for name, inbox in inboxes.items()},
    }


def drawn(rows: int, rank: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A rank's share, which the other can draw too. Half of it is coarse, with zeros of both signs."""
    generator = torch.Generator(device).manual_seed(1000 * seed + rank)
    x = torch.randn(rows, EMBED, generator=generator, device=device)
    x[:, ::2] = x[:, ::2].round()
    return x.to(dtype)


def check(ranks: Ranks, dtype: torch.dtype, device: torch.device, sums: dict[str, Sum]) -> Iterator[dict]:
    """Wrong elements of each way."""
    for name, add in sums.items():
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        for seed in range(120):
            rows = CHECKED[seed % len(CHECKED)]
            shares = [drawn(rows, rank, seed, dtype, device) for rank in range(2)]
            residual = drawn(rows, 2, seed, dtype, device)
            want = residual + (shares[0].float() + shares[1].float()).to(dtype)
            _hold_up(ranks, seed)
            wrong += (add(shares[ranks.rank].clone(), residual) != want).sum()
        graphs = _check_graphs(ranks, dtype, device, add)
        yield {"way": name, "dtype": str(dtype), "wrong": int(wrong), "wrong_in_graphs": graphs}


def _check_graphs(ranks: Ranks, dtype: torch.dtype, device: torch.device, add: Sum) -> int:
    """Two graphs of one pool, each a chain of sums, replayed in turn with an eager sum between them."""
    pool = torch.cuda.graph_pool_handle()
    graphs = [_captured_chain(ranks, rows, dtype, device, add, pool) for rows in (32, 5)]
    every_wrong = torch.zeros((), dtype=torch.int64, device=device)
    for seed in range(150):
        shares, graph, wrong = graphs[seed % 2]
        for rank in range(2):
            # multiples of an eighth, so that products with small integers are exact in bfloat16
            shares[rank].copy_((drawn(shares.shape[1], rank, seed, torch.float32, device) * 4).round() / 8)
        _hold_up(ranks, seed)
        graph.replay()
        rows = CHECKED[seed % len(CHECKED)]
        eager = [drawn(rows, rank, seed, dtype, device) for rank in range(2)]
        got = add(eager[ranks.rank].clone(), eager[0])
        want = eager[0] + (eager[0].float() + eager[1].float()).to(dtype)
        every_wrong += wrong + (got != want).sum()
    return int(every_wrong)


def _captured_chain(
    ranks: Ranks, rows: int, dtype: torch.dtype, device: torch.device, add: Sum, pool: Any
) -> tuple[Tensor, torch.cuda.CUDAGraph, Tensor]:
    """Both ranks' shares, a graph that adds multiples of them up, and how many sums came out wrong in it."""
    shares = torch.zeros(2, rows, EMBED, dtype=dtype, device=device)

    def chain() -> Tensor:
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        total = torch.zeros_like(shares[0])
        for factor in range(1, 8):
            want = total + (shares[0].float() * factor + shares[1].float() * factor).to(dtype)
            total = add(shares[ranks.rank] * factor, total)
            wrong += (total != want).sum()
        return wrong

    chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        wrong = chain()
    return shares, graph, wrong


def _hold_up(ranks: Ranks, seed: int) -> None:
    """Now and then one rank's device comes late, by up to half a millisecond."""
    if seed % 3 == ranks.rank:
        torch.cuda._sleep(seed * 7919 % 1_000_000)


def timed(ranks: Ranks, device: torch.device, sums: dict[str, Sum]) -> Iterator[dict]:
    weight = torch.randn(2048, EMBED, dtype=torch.bfloat16, device=device) / 45
    for rows in TIMED:
        share, residual = (drawn(rows, rank, 0, torch.bfloat16, device) for rank in (ranks.rank, 2))
        x = torch.randn(rows, 2048, dtype=torch.bfloat16, device=device)
        product = _microseconds(partial(torch.mm, x, weight), device)
        for name, add in sums.items():
            alone = _microseconds(partial(add, share, residual), device)
            both = _microseconds(partial(_behind_a_product, add, x, weight, residual), device)
            yield {"rows": rows, "way": name, "alone_us": alone, "behind_a_product_us": both - product}


def _behind_a_product(add: Sum, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    return add(torch.mm(x, weight), residual)


def _microseconds(function: Callable[[], Any], device: torch.device, calls: int = 64) -> float:
    """Of one call in a graph of many; the median replay of the slower rank."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            function()
    spans = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in spans[2:])
    slower = torch.tensor(times[len(times) // 2], device=device)
    dist.all_reduce(slower, dist.ReduceOp.MAX)
    return slower.item() * 1000 / calls


def run_rank(ranks: Ranks, meeting: str, path: str) -> None:
    device = torch.device("cuda", ranks.rank)
    torch.cuda.set_device(device)
    store = dist.FileStore(meeting, ranks.size)
    dist.init_process_group("nccl", store=store, rank=ranks.rank, world_size=ranks.size, device_id=device)
    found: dict[str, list[dict]] = {"check": [], "time": []}
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            sums = ways(ranks, dtype, device)
            for row in check(ranks, dtype, device, sums):
                found["check"].append(row)
                _say(ranks, row)
            if dtype == torch.bfloat16:
                for row in timed(ranks, device, sums):
                    found["time"].append(row)
                    _say(ranks, row)
    if path and ranks.rank == 0:
        Path(path).write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.flush()
    os._exit(
        int(any(row["wrong"] or row["wrong_in_graphs"] for row in found["check"]))
    )  # nothing to wait for


def _say(ranks: Ranks, row: dict) -> None:
    if ranks.rank == 0 or row.get("wrong") or row.get("wrong_in_graphs"):
        cells = (f"{k}={v:.2f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
        print(f"rank {ranks.rank}:", *cells, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="after which both ranks are ended")
    parser.add_argument("--json", default="", help="write all figures to this file")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        return run_rank(Ranks(arguments.rank, 2), arguments.meeting, arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            __file__,
            "--meeting",
            str(Path(folder, "meeting")),
            "--json",
            arguments.json,
        ]
        plain = {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NCCL_NVLS_ENABLE": "0"}  # what all links can do
        processes = [
            subprocess.Popen([*command, "--rank", str(rank)], env=os.environ | plain) for rank in range(2)
        ]
        try:
            status = _watch(processes, time.monotonic() + arguments.seconds)
        finally:
            for each in processes:
                each.kill()
    sys.exit(status)


def _watch(processes: list[subprocess.Popen], deadline: float) -> str | int:
    """Until both ranks are through: 0, or what went wrong."""
    while time.monotonic() < deadline:
        codes = [each.poll() for each in processes]
        if any(codes):
            time.sleep(1)  # for the other to say something
            return f"the ranks ended with {codes}"
        if codes == [0, 0]:
            return 0
        time.sleep(0.1)
    return "the time was over before both ranks were through"


if __name__ == "__main__":
    main()
