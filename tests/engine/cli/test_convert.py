"""`radixmesh convert`: which model, where to, and what it tells."""

from pathlib import Path
from typing import Any

import pytest

from radixmesh.engine.cli.joints import Conversion, Joints
from radixmesh.engine.cli.main import main
from radixmesh.engine.config import EngineConfig


def unused(*arguments: Any) -> Any:
    raise AssertionError("only convert should be called")


def test_it_converts_and_tells_time_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[EngineConfig, Path]] = []

    def convert(config: EngineConfig, output: Path) -> Conversion:
        asked.append((config, output))
        return Conversion(
            weights=538_000_000, seconds=7.94, peak_memory=482_000_000, memory_before=260_000_000
        )

    joints = Joints(
        version="9.9",
        find_backend=unused,
        survey=unused,
        convert=convert,
        plan=unused,
        slice_hosts=unused,
        follow=unused,
    )
    assert main(["convert", "--model-path", "a/b", "--dtype", "bfloat16", "--output", "new"], joints) == 0
    assert asked == [(EngineConfig(model_path="a/b", dtype="bfloat16"), Path("new"))]
    said = capsys.readouterr().out
    assert said == (
        "wrote 538 MB to new in 7.9 s; peak host memory 482 MB (260 MB before the first tensor)\n"
    )


@pytest.mark.parametrize(
    ("flags", "said"), [([], "--output"), (["--output", "new", "--page-size", "16"], "--page-size is not an")]
)
def test_what_it_does_not_take(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    joints = Joints(
        version="9.9",
        find_backend=unused,
        survey=unused,
        convert=unused,
        plan=unused,
        slice_hosts=unused,
        follow=unused,
    )
    assert main(["convert", *flags], joints) == 2
    assert said in capsys.readouterr().err
