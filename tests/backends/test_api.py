"""The public faces: options as keywords, the backend found by name."""

import asyncio

import pytest

import radixmesh
from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.engine.errors import ConfigError

GREEDY = radixmesh.SamplingParams(max_new_tokens=5, temperature=0.0, ignore_eos=True)


def test_llm() -> None:
    with radixmesh.LLM(backend="fake", page_size=4) as llm:
        assert llm.generate("hi", GREEDY, use_tqdm=False)[0].token_ids == expected_tokens(list(b"hi"), 5, 259)
        assert llm.capacity.page_size == 4


def test_async_llm() -> None:
    async def test() -> None:
        async with radixmesh.AsyncLLM(backend="fake", page_size=4) as llm:
            outputs = [output async for output in llm.generate("hi", GREEDY)]
            assert outputs[-1].token_ids == expected_tokens(list(b"hi"), 5, 259)
            assert llm.capacity.page_size == 4

    asyncio.run(test())


@pytest.mark.parametrize("face", ["LLM", "AsyncLLM"])
def test_an_unknown_option(face: str) -> None:
    with pytest.raises(ConfigError, match="pagesize is not an option of the engine; near are page_size"):
        getattr(radixmesh, face)(pagesize=4)
