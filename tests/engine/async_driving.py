"""An AsyncLLM for a test, and what must be left of it after: nothing."""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND
from radixmesh.engine.async_llm import AsyncLLM
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.outputs import RequestOutput
from radixmesh.engine.request import SamplingParams
from radixmesh.engine.runner import Backend

_others: set[int] = set()  # children that were there before a test


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No process and no folder outlives a test."""
    folder = Path("/tmp") / f"rm-{os.getpid()}"  # short: it holds sockets
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    _others.clear()
    _others.update(child.pid for child in psutil.Process().children())  # servers of other tests' fixtures
    yield
    assert list(folder.iterdir()) == []
    folder.rmdir()
    assert children() == []


def children() -> list[str]:
    """Command lines of the children that this test started."""
    mine = [child for child in psutil.Process().children() if child.pid not in _others]
    return [" ".join(child.cmdline()) for child in mine]


@asynccontextmanager
async def started(backend: Backend = FAKE_BACKEND, **options: Any) -> AsyncIterator[AsyncLLM]:
    async with AsyncLLM(EngineConfig(backend="fake", **options), backend) as llm:
        yield llm


async def collect(llm: AsyncLLM, prompt: Any, params: SamplingParams, **more: Any) -> list[RequestOutput]:
    """The last outputs by index; the deltas on the way add up to them."""
    text: dict[int, str] = {}
    ids: dict[int, list[int]] = {}
    last: dict[int, RequestOutput] = {}
    async for output in llm.generate(prompt, params, **more):
        assert output.index not in last or last[output.index].finish_reason is None
        last[output.index] = output
        text[output.index] = text.get(output.index, "") + output.text_delta
        ids[output.index] = ids.get(output.index, []) + output.new_token_ids
        assert (output.text, output.token_ids) == (text[output.index], ids[output.index])
    return [last[index] for index in sorted(last)]
