"""The first grammar on a serving engine: what it needs is there before the engine is ready."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND, TOKENIZER
from radixmesh.engine.async_llm import AsyncLLM
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.grammar.grammar import GrammarSpec
from radixmesh.engine.request import FinishReason, SamplingParams


@pytest.mark.parametrize("library", ["llguidance", "xgrammar", "outlines"])
def test_the_first_grammar_loads_nothing(library: str, tmp_path: Path) -> None:
    """Loading a vocabulary would hold up the steps of others, so that no tokenizer is looked for any more."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(TOKENIZER, folder)
    config = EngineConfig.from_options(
        backend="fake", grammar_backend=library, tokenizer_path=str(folder), grammar_timeout=60.0
    )
    params = SamplingParams(grammar=GrammarSpec("regex", "[a-z]{3}"), temperature=0.0)

    async def test() -> None:
        async with AsyncLLM(config, FAKE_BACKEND) as llm:
            shutil.rmtree(folder)
            text = ""
            async for output in llm.generate("hello", params):
                text = output.text
            assert re.fullmatch("[a-z]{3}", text) and output.finish_reason is FinishReason.STOP

    asyncio.run(test())
