"""The doctor's facts: true of this machine, and found without fetching or loading anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from radixmesh.backends.models.embedded import EMBEDDED
from radixmesh.backends.survey import survey
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "radixmesh"


def test_hardware_and_choices(cache: Path) -> None:
    machine = survey(EngineConfig(page_size=32, context_length=10**9))
    assert machine.hardware["platform"] in ("cpu", "tpu", "cuda", "rocm")
    assert machine.hardware["cores"]
    values = {choice.name: (choice.value, choice.reason) for choice in machine.choices}
    assert values["page_size"] == (32, "as asked")
    assert values["backend"][0] == "jax"
    assert "context_length" not in values  # the model was not looked at


def test_models_and_folders(cache: Path, tmp_path: Path) -> None:
    machine = survey(EngineConfig(compilation_cache_dir=str(tmp_path / "mine")))
    assert machine.models == dict.fromkeys(EMBEDDED)
    assert machine.folders == {"models": str(cache / "models"), "compiled steps": str(tmp_path / "mine")}
    assert not cache.exists(), "asking must write nothing"
    file = cache / "models" / EMBEDDED["gemma3-270m"].file
    file.parent.mkdir(parents=True)
    file.touch()
    assert survey(EngineConfig()).models["gemma3-270m"] == str(file)


def test_options_that_contradict_are_refused(cache: Path) -> None:
    with pytest.raises(ConfigError, match="max_running_requests is 9 and chunked_prefill_size is 8"):
        survey(EngineConfig(max_running_requests=9, chunked_prefill_size=8))


def test_doctor_runs_and_loads_no_framework(cache: Path) -> None:
    code = (
        "import sys; from radixmesh.__main__ import main; status = main(['doctor']);"
        "assert not {'jax', 'torch', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    src = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(src)!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "smollm2-135m-instruct" in done.stdout
