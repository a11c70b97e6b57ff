"""Backends that fail, in every way: how AsyncLLM's start or its requests end then."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND
from radixmesh.engine.async_llm import AsyncLLM
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError, EngineDeadError, ModelError
from radixmesh.engine.request import FinishReason, SamplingParams
from radixmesh.engine.runner import Backend
from tests.engine.async_driving import children, collect, nothing_is_left, started

__all__ = ["nothing_is_left"]  # for every test here

FAILING = """
import os, time
from radixmesh.engine.errors import ConfigError, EngineDeadError, ModelError
from radixmesh.backends.fake.backend import describe_fake
from radixmesh.backends.fake.runner import create_fake_runner
def bad_config(config, info): raise ConfigError("page_size is 3; accepted is 4")
def bad_model(config): raise ModelError("no such model")
def bug(config, info): return {}["missing"]
def dies(config, info): os._exit(7)
class Broken:
    def __init__(self, runner): self.runner = runner
    capacity = property(lambda self: self.runner.capacity)
    choices = ()
    def warmup(self): pass
    def close(self): pass
    def check(self): pass
    def forward(self, batch): raise OSError("the device is on fire")
class Lost(Broken):
    def check(self):
        if time.monotonic() > self.until: raise EngineDeadError("rank 1 ended with status -9")
    def forward(self, batch): raise EngineDeadError("rank 1 ended with status -9")
def broken(config, info): return Broken(create_fake_runner(config, info))
def lost(config, info):
    runner = Lost(create_fake_runner(config, info))
    runner.until = time.monotonic() + 3600
    return runner
def lost_soon(config, info):
    runner = lost(config, info)
    runner.until = time.monotonic() + 1
    return runner
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Backends in a module that the engine process can import too."""
    (tmp_path / "failing_backends.py").write_text(FAILING)
    monkeypatch.syspath_prepend(str(tmp_path))
    import failing_backends  # type: ignore[import-not-found]

    yield failing_backends
    del sys.modules["failing_backends"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("bad_config", ConfigError, "^page_size is 3; accepted is 4$"),
        ("bad_model", ModelError, "^no such model$"),
        ("bug", EngineDeadError, "KeyError: 'missing'"),
        ("dies", EngineDeadError, "ended with status 7"),
    ],
)
def test_a_start_that_fails(failing: Any, name: str, kind: type[Exception], words: str) -> None:
    function = getattr(failing, name)
    backend = Backend(
        function if name == "bad_model" else FAKE_BACKEND.describe,
        FAKE_BACKEND.create_runner if name == "bad_model" else function,
    )

    async def test() -> None:
        llm = AsyncLLM(EngineConfig(backend="fake"), backend)
        with pytest.raises(kind, match=words):
            await llm.start()
        assert not llm.alive and children() == []
        with pytest.raises(EngineDeadError):
            await collect(llm, "hello", SamplingParams())
        await llm.close()

    asyncio.run(test())


def test_a_device_that_fails_again_and_again_ends_the_engine(failing: Any) -> None:
    async def test() -> None:
        async with started(Backend(FAKE_BACKEND.describe, failing.broken)) as llm:
            for _ in range(2):
                (output,) = await collect(llm, "hello", SamplingParams())
                assert output.finish_reason is FinishReason.ERROR
                assert output.error is not None and "on fire" in output.error
            with pytest.raises(EngineDeadError, match="3 steps in a row failed.*on fire"):
                await collect(llm, "hello", SamplingParams())
            assert not llm.alive

    asyncio.run(test())


def test_a_device_that_is_lost_ends_the_engine_at_once(failing: Any) -> None:
    async def test() -> None:
        async with started(Backend(FAKE_BACKEND.describe, failing.lost)) as llm:
            with pytest.raises(EngineDeadError, match="rank 1 ended with status -9"):
                await collect(llm, "hello", SamplingParams())
            assert not llm.alive

    asyncio.run(test())


def test_a_device_that_is_lost_while_nothing_runs_is_noticed(failing: Any) -> None:
    async def test() -> None:
        async with started(Backend(FAKE_BACKEND.describe, failing.lost_soon)) as llm:
            assert llm.alive
            async with asyncio.timeout(20):
                while llm.alive:
                    await asyncio.sleep(0.02)
            with pytest.raises(EngineDeadError, match="rank 1 ended with status -9"):
                await collect(llm, "hello", SamplingParams())

    asyncio.run(test())
