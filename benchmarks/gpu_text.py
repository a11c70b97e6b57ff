"""A real model's text on this machine's GPU against the same on its CPU, token by token.

    PYTHONPATH=src python benchmarks/gpu_text.py MODEL [--new 64]

The CPU computes in float32 and is asked for logprobs; the GPU computes in bfloat16, through captured graphs.
Of each prompt it prints how many tokens agree, and where they part how much likelier the CPU found its own
choice. What bfloat16 alone does to a model's logprobs is the measure: to SmolLM2's 0.065 on average. Every
prompt is asked for twice, free and bound to a grammar, in one batch, so that steps have rows with and without
masks; and the prompts' own logprobs are compared.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

from radixmesh.engine.grammar.grammar import GrammarSpec

PROMPTS = (
    "The capital of France is", "def fibonacci(n):", "Water boils at", "Once upon a time",
    "The largest planet", "In 1969", "A short poem about the sea:\n", "The opposite of hot is",
    "To bake bread you need", "import numpy as", "Photosynthesis is", "The first president of the",
    "2, 4, 8, 16,", "My favourite season is", "The speed of light", "Shakespeare wrote",
)  # fmt: skip


GRAMMAR = GrammarSpec("regex", r"( [a-z]{2,9}){4,12}\.\n- [A-Z][a-z ]{10,60}\.")


def generate(model: str, new: int, logprobs: int | None) -> dict[str, list[Any]]:
    """Of each prompt, free and then bound: token ids and, if asked for, the likeliest of each place with
    their logprobs. And the logprobs of the prompts."""
    from radixmesh import LLM, SamplingParams

    llm = LLM(model, backend="torch", context_length=1024, max_total_tokens=32768)
    free = SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True, logprobs=logprobs)
    bound, scored = replace(free, grammar=GRAMMAR), replace(free, max_new_tokens=0, prompt_logprobs=0)
    texts = [text for text in PROMPTS for _ in range(2)]
    outputs = llm.generate(texts, [free, bound] * len(PROMPTS), use_tqdm=False)
    scores = llm.generate(list(PROMPTS), scored, use_tqdm=False)
    llm.close()
    return {
        "outputs": [
            [
                out.token_ids,
                [dict(zip(at.top_ids, at.top_logprobs, strict=True)) for at in out.logprobs or []],
            ]
            for out in outputs
        ],
        "scores": [[at.logprob for at in out.prompt_logprobs or []] for out in scores],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--on-cpu", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.on_cpu:
        print(json.dumps(generate(args.model, args.new, 20)))
        return
    command = [sys.executable, __file__, args.model, "--new", str(args.new), "--on-cpu"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, env=hidden, stdout=subprocess.PIPE, check=True, text=True)
    wanted = json.loads(ran.stdout)
    # greedy tokens and tokens with logprobs come from different samplers
    for logprobs in (None, 0):
        compare(wanted, generate(args.model, args.new, logprobs))


def compare(wanted: dict[str, list[Any]], got: dict[str, list[Any]]) -> None:
    """Print where they part."""
    whole = 0
    for index, ((want, likely), (tokens, _)) in enumerate(
        zip(wanted["outputs"], got["outputs"], strict=True)
    ):
        same = next((at for at, pair in enumerate(zip(want, tokens)) if pair[0] != pair[1]), None)  # noqa: B905
        if same is None:
            whole += len(want) == len(tokens)
            continue
        # JSON's keys are strings; a token beyond the likeliest 20 is no tie
        gap = likely[same].get(str(want[same]), float("nan")) - likely[same].get(
            str(tokens[same]), float("-inf")
        )
        name = f"{PROMPTS[index // 2]!r}{', bound' if index % 2 else ''}"
        print(f"{name}: {same} of {len(want)} tokens agree; the CPU's next is likelier by {gap:.3f} nats")
    print(f"{whole} of {len(wanted['outputs'])} texts are equal to the last token")
    gaps = [
        abs(one - other)
        for mine, theirs in zip(wanted["scores"], got["scores"], strict=True)
        for one, other in zip(mine, theirs, strict=True)
    ]
    mean = sum(gaps) / len(gaps)
    print(f"{len(gaps)} logprobs of prompts differ by at most {max(gaps):.3f}, on average {mean:.4f}")


if __name__ == "__main__":
    main()
