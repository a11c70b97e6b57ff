"""A real model's text on this machine's GPU against the same on its CPU, token by token.

    PYTHONPATH=src python benchmarks/gpu_text.py MODEL [--new 64]

The CPU computes in float32 and is asked for logprobs; the GPU computes in bfloat16, through captured graphs.
Of each prompt it prints how many tokens agree, and where they part how much likelier the CPU found its own
choice: a tie of bfloat16 is a few hundredths.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

PROMPTS = (
    "The capital of France is", "def fibonacci(n):", "Water boils at", "Once upon a time",
    "The largest planet", "In 1969", "A short poem about the sea:\n", "The opposite of hot is",
    "To bake bread you need", "import numpy as", "Photosynthesis is", "The first president of the",
    "2, 4, 8, 16,", "My favourite season is", "The speed of light", "Shakespeare wrote",
)  # fmt: skip


def generate(model: str, new: int, logprobs: int | None) -> list[Any]:
    """Token ids and, if asked for, the likeliest of each place with their logprobs."""
    from radixmesh import LLM, SamplingParams

    llm = LLM(model, backend="torch", context_length=1024, max_total_tokens=32768)
    params = SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True, logprobs=logprobs)
    outputs = llm.generate(list(PROMPTS), params, use_tqdm=False)
    llm.close()
    return [
        [each.token_ids, [dict(zip(at.top_ids, at.top_logprobs, strict=True)) for at in each.logprobs or []]]
        for each in outputs
    ]


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
    wanted, got = json.loads(ran.stdout), generate(args.model, args.new, None)
    whole = 0
    for prompt, (want, likely), (tokens, _) in zip(PROMPTS, wanted, got, strict=True):
        same = next(
            (at for at, pair in enumerate(zip(want, tokens, strict=True)) if pair[0] != pair[1]), None
        )
        if same is None:
            whole += 1
            continue
        # JSON's keys are strings; a token beyond the likeliest 20 is no tie
        gap = likely[same][str(want[same])] - likely[same].get(str(tokens[same]), float("-inf"))
        print(f"{prompt!r}: {same} of {len(want)} tokens agree; the CPU's next is likelier by {gap:.3f} nats")
    print(f"{whole} of {len(PROMPTS)} texts are equal to the last of {args.new} tokens")


if __name__ == "__main__":
    main()
