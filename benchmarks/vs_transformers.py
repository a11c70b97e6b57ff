"""radixmesh against `transformers.generate`: same weights, same prompts, same machine, same run.

    python benchmarks/vs_transformers.py [--requests 64] [--parts chat single prefix] [--json FILE]

    chat     requests made from a fixed list of prompts, output lengths mixed; output tokens per second
    single   one stream; decoded tokens per second after the first
    prefix   groups of questions behind a shared prefix; time to first token, our cache on against off

Both decode greedily in float32 and ignore the end-of-text token, so that both generate the same counts.
transformers gets static batches in the order of arrival, padded on the left, each as long as its longest
answer; only wanted tokens count, and the best of several batch sizes is taken. Each engine runs in a
process of its own, one after another, with as many threads as there are cores.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

PROMPTS = (
    "Why is the sky blue?",
    "Write a short poem about a lighthouse keeper who collects clocks.",
    "Explain what a hash table is to someone who has only ever used a dictionary made of paper.",
    "Give me three ideas for a quick dinner with rice, eggs and spinach.",
    "What is the difference between weather and climate?",
    "Rewrite this politely: I cannot come to your party because I do not want to.",
    "List five questions that one should ask before renting a flat.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it travel? Show how you get there.",
    "Write a Python function that returns the n-th Fibonacci number, and say how fast it is.",
    "Summarize in two sentences: Bees visit flowers for nectar and pollen. While they do, pollen sticks to"
    " them and is carried to other flowers, which can then make seeds. Without bees many crops would fail.",
    "Translate into French: The library closes at six, but the garden stays open until it is dark.",
    "Tell me a story about a robot that is afraid of stairs.",
    "What should I pack for four days of walking in the mountains in October?",
    "Who decides how many days a month has, and why does February have so few?",
    "Compare tea and coffee for someone who sleeps badly.",
    "Explain recursion with an example from the kitchen.",
)
SHORTEST, LONGEST = 16, 192  # output tokens of a chat request
SINGLE_TOKENS = 128


def main() -> None:
    options = parse()
    if options.worker:
        workload = json.loads(Path(options.workload).read_text())
        Path(options.out).write_text(json.dumps(WORKERS[options.worker](workload)))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    report(results)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model-path", default="smollm2-135m-instruct", help="an embedded model or a folder")
    parser.add_argument("--parts", nargs="+", default=["chat", "single", "prefix"],
                        choices=["chat", "single", "prefix"])  # fmt: skip
    parser.add_argument("--requests", type=int, default=64, help="chat requests")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64], help="transformers'")
    parser.add_argument("--groups", type=int, default=16, help="groups with a shared prefix")
    parser.add_argument("--questions", type=int, default=8, help="questions in a group")
    parser.add_argument("--prefix-len", type=int, default=512, help="tokens that a group shares")
    parser.add_argument("--clients", type=int, default=8, help="requests open at a time (prefix)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file for the figures")
    for hidden in ("--worker", "--workload", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run every worker that the parts need, one after another."""
    workload = folder / "workload.json"
    workload.write_text(json.dumps(make_workload(options)))
    workers = []
    if {"chat", "single"} & set(options.parts):
        workers += ["transformers", "radixmesh"]
    if "prefix" in options.parts:
        workers += ["cache_on", "cache_off"]
    results: dict[str, Any] = {"options": {**vars(options), "cores": os.cpu_count()}}
    for worker in workers:
        print(f"running {worker} ...", file=sys.stderr, flush=True)
        out = folder / f"{worker}.json"
        command = [
            sys.executable,
            __file__,
            "--worker",
            worker,
            "--workload",
            str(workload),
            "--out",
            str(out),
        ]
        subprocess.run(command, check=True)
        results[worker] = json.loads(out.read_text())
    return results


def make_workload(options: argparse.Namespace) -> dict[str, Any]:
    """Prompts as token ids, made once with the model's own template, for all workers."""
    from radixmesh.backends.models.source import find_model
    from radixmesh.engine.cli.bench.datasets import DatasetOptions, draw_conversations
    from radixmesh.engine.config import EngineConfig
    from radixmesh.engine.text.tokenizer import load_tokenizer

    source = find_model(EngineConfig(model_path=options.model_path))
    tokenizer = load_tokenizer(source.path, None, None)
    draw = random.Random(options.seed)
    texts = [PROMPTS[number % len(PROMPTS)] for number in range(options.requests)]
    # Numbered, so that no two requests are the same to a prefix cache.
    chats = [[{"role": "user", "content": f"{text} (request {i})"}] for i, text in enumerate(texts)]
    prompts = [
        tokenizer.encode(tokenizer.apply_chat_template(chat), add_special_tokens=False) for chat in chats
    ]
    shared = DatasetOptions(
        dataset_name="shared-prefix",
        num_groups=options.groups,
        prompts_per_group=options.questions,
        prefix_len=options.prefix_len,
        seed=options.seed,
    )
    drawn = draw_conversations(shared, "ids", tokenizer.vocab_size)
    return {
        "path": source.path,
        "parts": options.parts,
        "prompts": prompts,
        "output_lens": [draw.randint(SHORTEST, LONGEST) for _ in prompts],
        "batch_sizes": sorted({min(size, len(prompts)) for size in options.batch_sizes}),
        "questions": [each.turns[0].content for each in drawn],
        "clients": options.clients,
    }


def run_transformers(workload: dict[str, Any]) -> dict[str, Any]:
    """Measure transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    path = Path(workload["path"])
    is_gguf = path.suffix == ".gguf"
    place = {"pretrained_model_name_or_path": str(path.parent if is_gguf else path)}
    more = {"gguf_file": path.name} if is_gguf else {}
    model = AutoModelForCausalLM.from_pretrained(**place, **more, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # nothing ends an answer but its length

    def generate(prompts: list[list[int]], length: int) -> None:
        longest = max(map(len, prompts))
        padded = [[0] * (longest - len(each)) + each for each in prompts]
        mask = [[0] * (longest - len(each)) + [1] * len(each) for each in prompts]
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=torch.tensor(padded),
                attention_mask=torch.tensor(mask),
                max_new_tokens=length,
                do_sample=False,
                pad_token_id=0,
            )
        assert tokens.shape == (len(prompts), longest + length), tokens.shape

    generate(workload["prompts"][:2], 8)  # warm-up
    results: dict[str, Any] = {}
    prompts, lengths = workload["prompts"], workload["output_lens"]
    if "chat" in workload["parts"]:
        results["chat_by_batch_size"] = {}
        for size in workload["batch_sizes"]:
            begin = time.perf_counter()
            for first in range(0, len(prompts), size):
                generate(prompts[first : first + size], max(lengths[first : first + size]))
            speed = sum(lengths) / (time.perf_counter() - begin)
            results["chat_by_batch_size"][size] = speed
            print(f"  batches of {size}: {speed:.1f} tok/s", file=sys.stderr, flush=True)
        results["chat"] = max(results["chat_by_batch_size"].values())
    if "single" in workload["parts"]:
        results["single"] = decode_speed(lambda length: generate(prompts[:1], length))
    return results


def run_radixmesh(workload: dict[str, Any]) -> dict[str, Any]:
    """Measure radixmesh on the same prompts."""
    from radixmesh import LLM, SamplingParams

    with LLM(workload["path"], dtype="float32") as llm:

        def generate(prompts: list[list[int]], lengths: list[int]) -> None:
            params = [
                SamplingParams(max_new_tokens=each, temperature=0.0, ignore_eos=True) for each in lengths
            ]
            outputs = llm.generate(prompts, params, use_tqdm=False)
            assert [len(each.token_ids) for each in outputs] == lengths
            llm.flush_cache()  # the next measurement finds nothing

        generate(workload["prompts"][:2], [8, 8])  # warm-up
        results: dict[str, Any] = {}
        prompts, lengths = workload["prompts"], workload["output_lens"]
        if "chat" in workload["parts"]:
            begin = time.perf_counter()
            generate(prompts, lengths)
            results["chat"] = sum(lengths) / (time.perf_counter() - begin)
        if "single" in workload["parts"]:
            results["single"] = decode_speed(lambda length: generate(prompts[:1], [length]))
    return results


def decode_speed(generate: Callable[[int], None]) -> float:
    """Tokens per second after the first: the median of three runs, each without its prefill."""
    speeds = []
    for _ in range(3):
        begin = time.perf_counter()
        generate(1)
        first = time.perf_counter()
        generate(SINGLE_TOKENS)
        seconds = (time.perf_counter() - first) - (first - begin)
        speeds.append((SINGLE_TOKENS - 1) / seconds)
    return statistics.median(speeds)


async def first_tokens(workload: dict[str, Any], disable_radix_cache: bool) -> dict[str, Any]:
    """Times to first token, in ms, of all questions; `clients` of them are open at a time."""
    from radixmesh import AsyncLLM, SamplingParams

    params = SamplingParams(max_new_tokens=8, temperature=0.0, ignore_eos=True)
    gate = asyncio.Semaphore(workload["clients"])
    options: dict[str, Any] = {"dtype": "float32", "disable_radix_cache": disable_radix_cache}
    async with AsyncLLM(workload["path"], **options) as llm:

        async def ask(prompt: list[int]) -> tuple[float, int]:
            async with gate:
                begin = time.perf_counter()
                async with aclosing(llm.generate(prompt, params)) as outputs:
                    output = await anext(outputs)
                    first = time.perf_counter() - begin
                    cached = output.num_cached_tokens
                    async for _ in outputs:
                        pass
                return first * 1000, cached

        await ask(workload["prompts"][0])  # warm-up
        begin = time.perf_counter()
        asked = await asyncio.gather(*map(ask, workload["questions"]))
        seconds = time.perf_counter() - begin
    times = sorted(first for first, _ in asked)
    return {
        "mean_ttft_ms": statistics.mean(times),
        "median_ttft_ms": statistics.median(times),
        "p99_ttft_ms": times[min(len(times) - 1, int(0.99 * len(times)))],
        "duration": seconds,
        "cached_tokens": sum(cached for _, cached in asked),
        "input_tokens": sum(map(len, workload["questions"])),
    }


WORKERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "transformers": run_transformers,
    "radixmesh": run_radixmesh,
    "cache_on": lambda workload: asyncio.run(first_tokens(workload, False)),
    "cache_off": lambda workload: asyncio.run(first_tokens(workload, True)),
}


def report(results: dict[str, Any]) -> None:
    """Print a line for each measurement, and add the ratios to `results`."""
    ratios = results["ratios"] = {}
    print(f"{'':<40}{'transformers':>14}{'radixmesh':>14}{'ratio':>9}")
    for part, label in (("chat", "chat requests, output tok/s"), ("single", "single stream, decode tok/s")):
        if part in results["options"]["parts"]:
            theirs, ours = results["transformers"][part], results["radixmesh"][part]
            ratios[part] = ours / theirs
            print(f"{label:<40}{theirs:>14.1f}{ours:>14.1f}{ours / theirs:>8.2f}x")
    if "prefix" in results["options"]["parts"]:
        print(f"{'':<40}{'cache off':>14}{'cache on':>14}{'ratio':>9}")
        for name in ("mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms"):
            off, on = results["cache_off"][name], results["cache_on"][name]
            ratios[f"prefix_{name}"] = off / on
            label = f"shared prefix, {name.removesuffix('_ttft_ms')} TTFT in ms"
            print(f"{label:<40}{off:>14.1f}{on:>14.1f}{off / on:>8.2f}x")


if __name__ == "__main__":
    main()
