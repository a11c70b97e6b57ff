"""`radixmesh doctor` on a made-up machine, and on this one."""

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from radixmesh.__main__ import main
from radixmesh.engine.cli import doctor
from radixmesh.engine.cli.joints import Machine
from radixmesh.engine.config import Choice


def machine(tmp_path: Path, **hardware: Any) -> Machine:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_bytes(b"x" * 3000)
    return Machine(
        hardware={
            "platform": "tpu",
            "kind": "TPU v5e",
            "memory_bytes": 2 * 2**30,
            "driver": None,
            **hardware,
        },
        choices=(Choice("backend", "jax", "a TPU is here"),),
        models={"small": "/models/small.gguf", "other": None},
        folders={"models": str(tmp_path / "kept"), "compiled": str(tmp_path / "never made")},
    )


def test_a_machine_with_something_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"jax": "1.2.3"}
    monkeypatch.setattr(doctor, "installed_version", found.get)
    report = doctor.examine("9.9", machine(tmp_path))
    missing = {each["name"]: each["install"] for each in report["missing"]}
    assert missing["libtpu"] == "pip install 'jax[tpu]'"
    assert missing["fastapi"] == "pip install fastapi"
    assert "jax" not in missing
    assert "torch" not in missing  # nothing here needs it
    assert report["folders"]["models"]["bytes"] == 3000
    assert report["folders"]["compiled"]["bytes"] is None
    doctor.print_report(report)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "backend jax because a TPU is here" in lines
    assert "memory_bytes 2.0 GiB" in lines
    assert "driver unknown" in lines
    assert "jax 1.2.3" in lines
    assert "transformers not installed" in lines
    assert "small /models/small.gguf" in lines
    assert "other not here; fetched when first asked for" in lines
    assert f"models {tmp_path}/kept (3 KiB)" in lines
    assert "libtpu TPU driver and compiler; pip install 'jax[tpu]'" in lines


def test_libtpu_is_wanted_on_a_tpu_only(tmp_path: Path) -> None:
    report = doctor.examine("9.9", machine(tmp_path, platform="cpu"))
    assert "libtpu" not in [each["name"] for each in report["missing"]]


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in ("Hardware", "What would serve", "Packages", "Embedded models", "Caches", "Missing"):
        assert f"\n{part}\n" in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--backend", "fake"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["python"] == platform.python_version()
    assert {"name": "backend", "value": "fake", "reason": "as asked"} in report["choices"]
    assert report["packages"]["numpy"] is not None
    assert set(report["models"]) == {"smollm2-135m-instruct", "gemma3-270m"}
