"""What a GPU serves, by the definitions of a peer's figures: see docs/performance.md.

    python benchmarks/gpu_serving.py --model llama-3.1-8b [--parts decode prefill ...] [--json FILE]

    start     seconds from `LLM(...)` to ready
    decode    step time at several numbers of rows of 1,024 tokens: (time of 129 new tokens - time of 1) / 128
    prefill   one prompt of 8,128 tokens
    first     time to the first token of one prompt of 16, 128, 512 and 2,048 tokens, alone
    turnover  192 requests of 128 in, 64..127 out, 32 at a time: the next comes as one ends
    batch     1,000 requests of 512 tokens in, 256 out
    mixed     1,000 requests, in uniform 32..1023, out uniform 16..511
    prefix    512 requests: 32 prefixes of 2,048 tokens x 16 suffixes of 64, 64 out, shuffled; cache on, off
    idle      share of a steady decode run at 64 rows in which no kernel runs, and which kernels take the time
    ranks     decode with one GPU and with --ranks of them, and how many times as fast; not among the defaults
    floor     decode step of transformers' `generate` with a static batch of 32 rows

Weights are drawn at random, decoding is greedy and ignores the end-of-text token, prompts are token ids.
Shares are of ceilings measured in the same process: of the copy bandwidth (bytes read and written) the
share is (weights + rows x 1,088 x KV bytes of a token) / step time; of the matrix rate that of a product of
8192^3, counting a prompt's matrix products and causal attention. Engine options go as `--set name=value`.
"""

import argparse
import collections
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from radixmesh import LLM, SamplingParams

MODELS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=128256, hidden_size=4096,
        intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=500000.0,
        hidden_act="silu", tie_word_embeddings=False, torch_dtype="bfloat16",
    ),
    "qwen3-0.6b": dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", vocab_size=151936, hidden_size=1024,
        intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, max_position_embeddings=40960, rms_norm_eps=1e-6, rope_theta=1000000.0,
        hidden_act="silu", tie_word_embeddings=True, torch_dtype="bfloat16",
    ),
    "tiny": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=1000, hidden_size=64,
        intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, max_position_embeddings=16384, rms_norm_eps=1e-5, rope_theta=10000.0,
        hidden_act="silu", tie_word_embeddings=True, torch_dtype="bfloat16",
    ),
}  # fmt: skip
CONTEXT, PROMPT, NEW = 1088, 1024, 129  # tokens: average context while decoding, prompt, output
Figures = dict[str, Any]


class Bench:
    """A served model, its ceilings, and a stream of prompts that no run has seen before."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.config, self.ceilings = MODELS[model], ceilings()
        self._folder = tempfile.TemporaryDirectory()
        self._options = dict(
            backend="torch", load_format="dummy", skip_tokenizer_init=True, random_seed=0, context_length=8192
        ) | options  # fmt: skip
        Path(self._folder.name, "config.json").write_text(json.dumps(self.config))
        self._rng = random.Random(0)
        self.start()

    def start(self, **options: Any) -> None:
        """Load the model. Its `start_seconds` count from here."""
        began = time.perf_counter()
        options = self._options | options
        self.llm = LLM(self._folder.name, **options)
        self.tp_size = options.get("tp_size", 1)
        self.start_seconds = time.perf_counter() - began

    def ids(self, count: int) -> list[int]:
        return [self._rng.randrange(self.config["vocab_size"]) for _ in range(count)]

    def integer(self, low: int, high: int) -> int:
        return self._rng.randint(low, high)

    def shuffle(self, values: list[Any]) -> None:
        self._rng.shuffle(values)

    def run(self, prompts: Sequence[list[int]], new: int | Sequence[int]) -> float:
        """Seconds to generate; prefixes of earlier runs are forgotten."""
        assert self.llm.flush_cache()
        counts = [new] * len(prompts) if isinstance(new, int) else new
        params = [SamplingParams(max_new_tokens=each, temperature=0, ignore_eos=True) for each in counts]
        began = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        assert [len(each.token_ids) for each in outputs] == list(counts)
        return seconds

    @property
    def layer_params(self) -> int:
        """Elements of the layers' matrices."""
        c = self.config
        size, dim = c["hidden_size"], c["head_dim"]
        attention = size * dim * (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"])
        return c["num_hidden_layers"] * (attention + 3 * size * c["intermediate_size"])

    @property
    def weight_bytes(self) -> int:
        """What the model takes in bfloat16, norms left out."""
        tables = 1 if self.config["tie_word_embeddings"] else 2
        return 2 * (self.layer_params + tables * self.config["vocab_size"] * self.config["hidden_size"])

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        c = self.config
        return c["num_hidden_layers"] * 2 * c["num_key_value_heads"] * c["head_dim"] * 2


def ceilings() -> Figures:
    """Copy bandwidth in TB/s (read and written) and bfloat16 matrix rate in TFLOP/s of this device."""
    if not torch.cuda.is_available():
        return {"device": "cpu"}
    found = {
        "device": torch.cuda.get_device_name(),
        "copy_tb_s": _copy_rate() / 1e12,
        "matrix_tflop_s": _matrix_rate() / 1e12,
    }
    torch.cuda.empty_cache()
    return found


def _copy_rate() -> float:
    source, target = torch.empty(2, 2 << 30, dtype=torch.uint8, device="cuda")
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _matrix_rate() -> float:
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / _seconds(lambda: torch.mm(a, b))


def _seconds(function: Callable[[], Any], repeats: int = 10) -> float:
    """GPU seconds of one call."""
    for _ in range(3):
        function()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / repeats


def decode(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    """Step time and share of the copy bandwidth, the better of two runs."""
    for rows in arguments.rows:
        times = {}
        for new in (1, NEW):
            times[new] = min(bench.run([bench.ids(PROMPT) for _ in range(rows)], new) for _ in range(2))
        step = (times[NEW] - times[1]) / (NEW - 1)
        least = bench.weight_bytes + rows * CONTEXT * bench.kv_bytes
        yield {"rows": rows, "step_ms": step * 1e3} | _share(bench, "copy_tb_s", least / step)


def ranks(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    """Both in this process, one after the other."""
    steps: dict[int, list[float]] = {}
    for size in (1, arguments.ranks):
        if bench.tp_size != size:
            bench.llm.close()
            bench.start(tp_size=size)
        steps[size] = []
        for row in decode(bench, arguments):
            steps[size].append(row["step_ms"])
            yield {"tp_size": size} | row
    for rows, one, several in zip(arguments.rows, *steps.values(), strict=True):
        yield {"rows": rows, "tp_size": arguments.ranks, "times_as_fast": one / several}


def prefill(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    """The best of three runs."""
    tokens, c = 8128, bench.config
    seconds = min(bench.run([bench.ids(tokens)], 1) for _ in range(3))
    attention = 2 * c["num_hidden_layers"] * c["num_attention_heads"] * c["head_dim"] * tokens**2
    flops = 2 * bench.layer_params * tokens + attention
    yield {"tokens": tokens, "seconds": seconds} | _share(bench, "matrix_tflop_s", flops / seconds)


def first(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    """The median of nine."""
    for tokens in (16, 128, 512, 2048):
        seconds = statistics.median(bench.run([bench.ids(tokens)], 1) for _ in range(9))
        yield {"tokens": tokens, "first_token_ms": seconds * 1e3}


def turnover(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    """The better of two runs of a second start, whose rows are few."""
    bench.llm.close()
    bench.start(max_running_requests=32)
    prompts = [bench.ids(128) for _ in range(192)]
    new = [bench.integer(64, 127) for _ in prompts]
    yield max((_throughput(bench, prompts, new) for _ in range(2)), key=lambda each: each["output_tok_s"])


def batch(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    count = arguments.requests
    yield _throughput(bench, [bench.ids(512) for _ in range(count)], [256] * count)


def mixed(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    prompts = [bench.ids(bench.integer(32, 1023)) for _ in range(arguments.requests)]
    yield _throughput(bench, prompts, [bench.integer(16, 511) for _ in prompts])


def prefix(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    """With the radix cache, then a second start without."""
    stems = [bench.ids(2048) for _ in range(32)]
    prompts = [stem + bench.ids(64) for stem in stems for _ in range(16)]
    bench.shuffle(prompts)
    yield {"radix_cache": True} | _throughput(bench, prompts, [64] * len(prompts))
    bench.llm.close()
    bench.start(disable_radix_cache=True)
    yield {"radix_cache": False} | _throughput(bench, prompts, [64] * len(prompts))


def _throughput(bench: Bench, prompts: list[list[int]], new: list[int]) -> Figures:
    seconds = bench.run(prompts, new)
    tokens_in, tokens_out = sum(map(len, prompts)), sum(new)
    return {
        "requests": len(prompts), "seconds": seconds, "requests_s": len(prompts) / seconds,
        "total_tok_s": (tokens_in + tokens_out) / seconds, "output_tok_s": tokens_out / seconds,
    }  # fmt: skip


def _share(bench: Bench, ceiling: str, rate: float) -> Figures:
    if ceiling not in bench.ceilings:
        return {}
    return {ceiling: rate / 1e12, "share": rate / 1e12 / bench.ceilings[ceiling]}


def idle(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    """From the profiler's trace: the decode part of a run, where each step ends with a copy to the host."""
    prompts = [bench.ids(16) for _ in range(64)]
    bench.run(prompts, 8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.trace or Path(folder, "trace.json"))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            bench.run(prompts, 128)
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    work = sorted(
        (each["ts"], each["dur"], each["name"])
        for each in events
        if each.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    )
    work = work[len(work) // 5 :]  # after prefill
    begin, end, busy, reached = work[0][0], max(ts + dur for ts, dur, _ in work), 0.0, work[0][0]
    per_kernel: collections.Counter[str] = collections.Counter()
    for ts, dur, name in work:
        busy += max(0.0, ts + dur - max(ts, reached))
        reached = max(reached, ts + dur)
        per_kernel[name] += dur
    yield {"rows": 64, "idle_share": 1 - busy / (end - begin)}
    for name, duration in per_kernel.most_common(15):
        yield {"kernel": name[:80], "share": duration / (end - begin)}


def floor(bench: Bench, arguments: argparse.Namespace) -> Iterator[Figures]:
    """transformers, with the same shape and random weights, after our own engine is closed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    bench.llm.close()
    torch.cuda.empty_cache()
    fields = {name: value for name, value in bench.config.items() if name != "torch_dtype"}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.tensor([bench.ids(PROMPT) for _ in range(32)], device="cuda")
    times = {}
    for new in (1, NEW):
        for _ in range(2):  # the second is measured
            torch.cuda.synchronize()
            began = time.perf_counter()
            model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
            torch.cuda.synchronize()
            times[new] = time.perf_counter() - began
    yield {"rows": 32, "step_ms": (times[NEW] - times[1]) / (NEW - 1) * 1e3, "prefill_seconds": times[1]}


PARTS: dict[str, Callable[[Bench, argparse.Namespace], Iterator[Figures]]] = {
    "decode": decode, "ranks": ranks, "prefill": prefill, "first": first, "batch": batch, "mixed": mixed,
    "idle": idle, "prefix": prefix, "turnover": turnover, "floor": floor,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-8b")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=[each for each in PARTS if each != "ranks"]
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 128, 256])
    parser.add_argument("--ranks", type=int, default=2, help="GPUs of the part ranks")
    parser.add_argument("--requests", type=int, default=1000, help="of the parts batch and mixed")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="options of the engine")
    parser.add_argument("--trace", help="keep the trace of the part idle in this file")
    parser.add_argument("--json", help="write all figures to this file")
    arguments = parser.parse_args()
    bench = Bench(arguments.model, dict(_option(each) for each in arguments.set))
    figures: Figures = {"model": arguments.model, "ceilings": bench.ceilings}
    _show("ceilings", bench.ceilings)
    figures["start"] = {"seconds": bench.start_seconds}
    _show("start", figures["start"])
    for name in (each for each in PARTS if each in arguments.parts):
        figures[name] = []
        for row in PARTS[name](bench, arguments):
            figures[name].append(row)
            _show(name, row)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _show(part: str, row: Figures) -> None:
    cells = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
    print(f"{part:9}", *cells, flush=True)


if __name__ == "__main__":
    main()
