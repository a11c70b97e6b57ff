"""Generate for several prompts in this process: `python examples/offline.py`."""

from radixmesh import LLM, SamplingParams

PROMPTS = ["The capital of France is", "Water boils at", "def fibonacci(n):"]


def main() -> None:
    params = SamplingParams(temperature=0.0, max_new_tokens=32)
    with LLM("smollm2-135m-instruct") as llm:
        for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
            print(f"{prompt!r} -> {output.text!r} ({output.finish_reason})")


if __name__ == "__main__":
    main()
