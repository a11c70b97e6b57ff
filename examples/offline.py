"""Generate for several prompts in this process: `python examples/offline.py`."""

from radixmesh import LLM, SamplingParams

PROMPTS = ["The capital of France is", "Water boils at", "def fibonacci(n):"]


def main() -> None:
    llm = LLM("smollm2-135m-instruct")
    try:
        outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_new_tokens=32))
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            print(f"{prompt!r} -> {output.text!r} ({output.finish_reason})")
    finally:
        llm.close()


if __name__ == "__main__":
    main()
