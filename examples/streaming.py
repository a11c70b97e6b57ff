"""Stream two answers at once from an engine in its own process: `python examples/streaming.py`."""

import asyncio

from radixmesh import AsyncLLM, SamplingParams

PROMPTS = ["Once upon a time", "The three laws of motion are"]


async def show(llm: AsyncLLM, prompt: str) -> None:
    async for output in llm.generate(prompt, SamplingParams(max_new_tokens=32)):
        print(f"{prompt!r}: {output.text_delta!r}")


async def main() -> None:
    async with AsyncLLM("smollm2-135m-instruct") as llm:
        await asyncio.gather(*(show(llm, prompt) for prompt in PROMPTS))


if __name__ == "__main__":
    asyncio.run(main())
