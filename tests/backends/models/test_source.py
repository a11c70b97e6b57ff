"""What is fetched of a Hugging Face repo: never what could run, unless that was asked for."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from radixmesh.backends.models.source import find_model
from radixmesh.engine.config import EngineConfig


@pytest.mark.parametrize("trusted", [False, True])
def test_code_is_fetched_only_where_it_is_trusted(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    find_model(EngineConfig(model_path="someone/something", trust_remote_code=trusted))

    def is_fetched(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])

    assert is_fetched("tokenizer.json") and is_fetched("model-00001-of-2.safetensors")
    assert is_fetched("modeling_own.py") == trusted
    assert not is_fetched("pytorch_model.bin")
