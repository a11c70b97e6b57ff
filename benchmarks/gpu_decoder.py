"""One decode layer on a GPU: what a layer takes, each of its products, and what sizes suit them.

    PYTHONPATH=src python benchmarks/gpu_decoder.py [--sweep] [--ranks 2]

The decoder of `backends/torch_cuda` with a few layers of random weights, rows of 1,088 tokens, in a captured
graph. `library` is the same with the vendor's products and a kernel each for norm and gate; `one by one` the
same without kernels that start before the one before them has ended. With `--ranks` it is the layer of one of
so many ranks, which sums with itself: all of a rank's work but the way over the link. `--sweep` prints the
fastest sizes of each product, as entries for `kernels/tuned/ARCHITECTURE.json`.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_kernels import SHAPES, Ceilings, Shape, batch, ceilings, report, seconds
from gpu_serving import MODELS
from torch import Tensor

from radixmesh.backends.models.families.registry import family_of_hf, param_table
from radixmesh.backends.models.hf_config import read_hf_config
from radixmesh.backends.models.spec import ModelSpec
from radixmesh.backends.torch_cuda.decoder import Decoder
from radixmesh.backends.torch_cuda.forward_batch import ForwardBatch
from radixmesh.backends.torch_cuda.loader import Weights, dummy_weights
from radixmesh.backends.torch_cuda.operations import operations_for
from radixmesh.backends.torch_cuda.rank_sums import RankSums
from radixmesh.backends.torch_cuda.ranks import Ranks
from radixmesh.kernels.all_reduce.inbox import bits_of, empty_inbox, inbox_shape
from radixmesh.kernels.linear import triton as linear
from radixmesh.kernels.linear.torch_ref import Norm
from radixmesh.kernels.linear.torch_ref import linear as twin
from radixmesh.kernels.tuning import Target, target_of

DEVICE = torch.device("cuda")
CONTEXT = 1088
LAYERS = {"llama-3.1-8b": 8, "qwen3-0.6b": 28}


def spec_of(model: str) -> ModelSpec:
    """The model with few layers and a small vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        fields = MODELS[model] | {"num_hidden_layers": LAYERS[model], "vocab_size": 1024}
        Path(folder, "config.json").write_text(json.dumps(fields))
        config = read_hf_config(folder)
    return family_of_hf(config.architectures).spec_from_hf(config)


def weights_of(spec: ModelSpec, ranks: Ranks) -> Weights:
    return dummy_weights(spec, param_table(spec), 0, torch.bfloat16, DEVICE, ranks)


def sums_alone(ranks: Ranks) -> RankSums:
    """Sums of a rank that is all the others too: what it sends to one, it finds as that one's share."""
    if ranks.size == 1:
        return RankSums(ranks)
    slots = torch.empty(inbox_shape(ranks.size, 4 << 20), dtype=bits_of(torch.bfloat16), device=DEVICE)
    apart = slots.stride(1) * slots.itemsize
    addresses = [slots.data_ptr() + (rank - ranks.rank) * apart for rank in range(ranks.size)]
    return RankSums(ranks, empty_inbox(ranks.rank, slots, addresses))


def time_layers(model: str, shape: Shape, ceiling: Ceilings, counts: list[int], ranks: Ranks) -> None:
    """Of the whole decoder, as it is and without what it is made fast by."""
    spec = spec_of(model)
    weights = weights_of(spec, ranks)
    shape = shape._replace(heads=shape.heads // ranks.size, kv_heads=shape.kv_heads // ranks.size)
    decoder = Decoder(spec, weights, 2048, operations_for(DEVICE, True), ranks, sums_alone(ranks))
    for rows in counts:
        given = batch(shape, [(1, CONTEXT)] * rows, 64)
        pool = given.pool.view(given.layers, -1)[:1].expand(spec.num_layers, -1).contiguous()
        pool = pool.view(-1, *given.pool.shape[1:])
        words = torch.full((rows,), CONTEXT - 1, dtype=torch.int32, device=DEVICE)
        fields = dict.fromkeys(ForwardBatch._fields) | {"positions": words, "rows": given.rows}
        residual = torch.zeros(rows, spec.hidden_size, dtype=torch.bfloat16, device=DEVICE)
        call = partial(decoder.hidden, residual, ForwardBatch(**fields), pool)
        moved = _layer_bytes(weights) + rows * CONTEXT * shape.kv_heads * shape.head_dim * 4
        name = f"{model}, a layer, {rows} rows"
        report(name, seconds([call]) / spec.num_layers, ceiling, moved=moved)
        with patch.object(linear, "FEW_ROWS", 0):
            report(f"{name}, library", seconds([call]) / spec.num_layers, ceiling, moved=moved)
        with patch.object(Target, "overlaps", False):
            report(f"{name}, one by one", seconds([call]) / spec.num_layers, ceiling, moved=moved)
        profile(call, spec.num_layers)
        error = _error(call)
        print(f"check {name}: error {error:.1e}", flush=True)


def profile(call: Callable[[], Any], layers: int) -> None:
    """Print from start to start of each kernel of a layer, averaged over layers."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(5):
                graph.replay()
            torch.cuda.synchronize()
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    work = sorted((each["ts"], each["dur"], each["name"]) for each in events if each.get("cat") == "kernel")
    one = len(work) // 5
    a_layer = one // layers
    work = work[2 * one : 3 * one][one % layers :]  # embedding comes first
    for place in range(a_layer):
        mine = [index for index in range(place + a_layer, len(work) - a_layer, a_layer)]
        gap = sum(work[i + 1][0] - work[i][0] for i in mine) / len(mine)
        took = sum(work[i][1] for i in mine) / len(mine)
        print(f"      {work[mine[0]][2][:60]:60} {gap:7.2f} to the next, {took:7.2f} itself", flush=True)


def _error(call: Callable[[], Tensor]) -> float:
    """Between our products and the library's."""
    got = call().float()
    with patch.object(linear, "FEW_ROWS", 0):
        want = call().float()
    return ((got - want).norm() / want.norm()).item()


def _layer_bytes(weights: Weights) -> int:
    return sum(each.nbytes for each in weights.layers[0].values())


class Product:
    """One of a layer's products, over the weights of all layers."""

    def __init__(self, name: str, weights: Weights, rows: int, ranks: Ranks) -> None:
        self.matrices = [layer[name] for layer in weights.layers]
        outputs, inputs = self.matrices[0].shape
        self.x = torch.randn(rows, inputs, dtype=torch.bfloat16, device=DEVICE)
        self.options: dict[str, Any] = {}
        if name in ("qkv", "gate_up"):
            self.options["norm"] = Norm(torch.ones(inputs, dtype=torch.bfloat16, device=DEVICE), 1e-6)
        elif ranks.size == 1:  # else the ranks' sum adds
            self.options["onto"] = torch.randn(rows, outputs, dtype=torch.bfloat16, device=DEVICE)
        if name == "gate_up":
            self.options["gate"] = "silu"

    def calls(self, function: Callable[..., Tensor]) -> list[Callable[[], Tensor]]:
        """A call for each layer."""
        return [partial(function, self.x, each, **self.options) for each in self.matrices]


NAMES = ("qkv", "o", "gate_up", "down")


def grid() -> Iterator[linear.LinearSizes]:
    for columns, depth, warps, stages in itertools.product(
        (16, 32, 64), (64, 128, 256, 512), (2, 4, 8), (2, 3, 4, 6, 8)
    ):
        if 4096 <= columns * depth <= 16384 and 16 << 10 <= columns * depth * stages <= 64 << 10:
            yield linear.LinearSizes(columns, depth, warps, stages)


def rules(name: str, rows: int) -> tuple[str, ...]:
    """Whose sizes the product of so many rows takes, once they are measured."""
    if name in ("o", "down"):
        return ("summed_sizes",)
    return ("linear_sizes", "summed_sizes") if name == "qkv" and rows <= 8 else ("linear_sizes",)


def sweep(model: str, counts: list[int], ceiling: Ceilings, ranks: Ranks) -> None:
    """Time every product with every size that fits and is right."""
    weights = weights_of(spec_of(model), ranks)
    for name, rows in itertools.product(NAMES, counts):
        product, taken = Product(name, weights, rows, ranks), {}
        with patch.object(linear, "FEW_ROWS", 0):
            least = seconds(product.calls(linear.linear), 7)
        moved = product.matrices[0].nbytes
        report(f"{model} {name}, {rows} rows, library", least, ceiling, moved=moved)
        for rule, sizes in itertools.product(rules(name, rows), grid()):
            if rule == "summed_sizes" and sizes.depth < 16 * sizes.num_warps:  # of which each takes a part
                continue
            chosen = dict.fromkeys(("linear_sizes", "summed_sizes"), lambda *_, **__: None)
            chosen[rule] = lambda *_, sizes=sizes, **__: sizes
            with patch.multiple(linear, **chosen):
                if is_right(product, sizes):
                    taken[rule, sizes] = seconds(product.calls(linear.linear), 7)
        for rule, sizes in sorted(taken, key=lambda each: taken[each])[:4]:
            outputs, inputs = product.matrices[0].shape
            padded = max(8 if rule == "summed_sizes" else 16, rows)
            entry = {"outputs": outputs, "inputs": inputs, "rows": padded} | sizes._asdict()
            took = taken[rule, sizes]
            print(f"  {took * 1e6:7.2f} us, {least / took:.2f}x {json.dumps(entry)}", flush=True)


def is_right(product: Product, sizes: linear.LinearSizes) -> bool:
    """Whether the sizes, which the kernel takes now, divide the matrix, fit and compute the right thing."""
    x, matrix, options = product.x, product.matrices[0], dict(product.options)
    if matrix.shape[0] % (sizes.columns << ("gate" in options)) or matrix.shape[1] % sizes.depth:
        return False
    if "onto" in options:
        options["onto"] = options["onto"].clone()
    try:
        got = linear.linear(x, matrix, **options).float()
    except RuntimeError as refused:  # too much shared memory, mostly
        print(f"{sizes}: {str(refused).splitlines()[0][:90]}", flush=True)
        return False
    if "onto" in options:
        options["onto"] = product.options["onto"].clone()
    want = twin(x, matrix, **options).float()
    return bool((got - want).norm() / want.norm() < 1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--models", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--ranks", type=int, default=1, help="the layer of one of so many")
    parser.add_argument("--sweep", action="store_true", help="search sizes of the products instead")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, {target_of(DEVICE)}, torch {torch.__version__}", flush=True)
    ceiling = ceilings()
    for model, shape in zip(LAYERS, SHAPES, strict=True):
        if model in args.models and args.sweep:
            sweep(model, args.rows, ceiling, Ranks(0, args.ranks))
        elif model in args.models:
            time_layers(model, shape, ceiling, args.rows, Ranks(0, args.ranks))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
