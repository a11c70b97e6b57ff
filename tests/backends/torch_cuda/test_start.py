"""Memory that does not suffice: what is missing, in the name of the option that can help."""

from pathlib import Path
from typing import Any

import pytest
import torch

from radixmesh.backends.registry import create_runner, describe_model
from radixmesh.backends.torch_cuda import pages, start
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError
from tests.tiny_models import save_tiny_model

# llama of tiny_models: embed and lm_head, final norm, then three layers
ELEMENTS = 2 * 160 * 32 + 32 + 3 * (2 * 32 + 32 * 8 * (4 + 2 * 2 + 4) + 3 * 32 * 48)
TOKEN_BYTES = 3 * 2 * 2 * 8 * 4 + 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    save_tiny_model("llama", made)
    return made


def begin(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, **options: Any) -> Any:
    """A start on a machine with `free` bytes before the weights are loaded, and as many less after."""
    monkeypatch.setattr(start, "free_memory", lambda device: free)
    monkeypatch.setattr(pages, "free_memory", lambda device: free - 4 * ELEMENTS)
    config = EngineConfig(model_path=str(folder), backend="torch", page_size=8, **options)
    return create_runner(config, describe_model(config))


def test_weights_that_do_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"take 0\.00 GiB in float32 .* a smaller model would fit"):
        begin(folder, monkeypatch, 4 * ELEMENTS - 1)


def test_no_room_for_a_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"mem_fraction_static is 0\.5, .* are missing; raise it"):
        begin(folder, monkeypatch, 2 * (4 * ELEMENTS + 8 * TOKEN_BYTES) - 2, mem_fraction_static=0.5)


def test_the_pool_takes_its_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2 * (4 * ELEMENTS + 100 * TOKEN_BYTES)
    runner = begin(folder, monkeypatch, free, mem_fraction_static=0.5, max_running_requests=4)
    assert runner.capacity.num_pages == 12  # 100 tokens are twelve pages and a half
    (choice,) = (choice for choice in runner.choices if choice.name == "max_total_tokens")
    assert choice.value == 96 and "0.50 of the" in choice.reason


def test_a_pool_that_was_asked_for_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 4 * ELEMENTS + 80 * TOKEN_BYTES
    with pytest.raises(ConfigError, match="max_total_tokens is 88, .* accepted is less than 80"):
        begin(folder, monkeypatch, free, max_total_tokens=88)


def test_steps_that_do_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU alone: a CPU has nothing to warm up."""
    runner = begin(folder, monkeypatch, 1 << 30, max_total_tokens=800)

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    runner._device = torch.device("cuda")
    monkeypatch.setattr(runner, "_compile_and_capture", full)
    with pytest.raises(ConfigError, match="a step of 512 tokens or the decode graphs do not fit"):
        runner.warmup()
