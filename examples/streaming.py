"""Stream two answers at once from an engine in its own process: `python examples/streaming.py`."""

import asyncio

from radixmesh import AsyncLLM, SamplingParams

PROMPTS = ["Once upon a time", "The three laws of motion are"]


async def show(llm: AsyncLLM, prompt: str) -> None:
    async for output in llm.generate(prompt, SamplingParams(max_new_tokens=32)):
        print(f"{prompt!r}: {output.text_delta!r}")


async def main() -> None:
    llm = AsyncLLM("smollm2-135m-instruct")
    await llm.start()
    try:
        await asyncio.gather(*(show(llm, prompt) for prompt in PROMPTS))
    finally:
        await llm.close()


if __name__ == "__main__":
    asyncio.run(main())
