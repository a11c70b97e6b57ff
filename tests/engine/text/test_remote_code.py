"""Code that comes with a model runs only where that was asked for."""

import json
import shutil
from pathlib import Path

import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ModelError
from radixmesh.engine.text.tokenizer import load_tokenizer, tokenizer_of

CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path({mark!r}).touch()

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose tokenizer is a class of its own, which leaves `mark` beside it when it is imported."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(TOKENIZER, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    own = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (folder / "config.json").write_text(json.dumps({"model_type": "own"}))
    (folder / "own_tokenizer.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    return folder


def test_it_is_refused_and_not_run(model: Path) -> None:
    with pytest.raises(ModelError, match="is Python code that comes with it.*--trust-remote-code"):
        load_tokenizer(str(model))
    assert not (model.parent / "mark").exists()


def test_it_runs_where_it_is_trusted(model: Path) -> None:
    config = EngineConfig(tokenizer_path=str(model), trust_remote_code=True)
    tokenizer = tokenizer_of(config, FAKE_BACKEND.describe(config))
    assert tokenizer is not None and type(tokenizer.fast).__name__ == "OwnTokenizer"
    assert tokenizer.encode("hi") == list(b"hi")
    assert (model.parent / "mark").exists()
