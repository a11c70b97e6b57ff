"""`radixmesh plan` as a user meets it: fast without compiling, in text and in JSON."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import radixmesh
from radixmesh.__main__ import main
from radixmesh.engine.cli.plan_plot import draw

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
ASKED = ["plan", "--model-path", "llama-3.1-8b", "--topology", "v6e:2x4", "--no-compile"]


def test_arithmetic_alone_needs_no_framework_and_no_time() -> None:
    code = (
        "import sys, time\nfrom radixmesh.__main__ import main\n"
        f"assert main({ASKED!r}) == 0\nassert not {{'jax', 'torch', 'libtpu'}} & set(sys.modules)\n"
        "assert time.process_time() < 2"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=ENV)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_printed_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--mesh", "data=1,tensor=8", "--context", "4096", "--rows", "64"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith(
        "llama-3.1-8b on v6e:2x4: 8 devices of TPU v6e, each with 31.24 GiB at 1640 GB/s"
    )
    assert "context_length=4096 because as asked" in lines
    assert any(
        line.startswith("a device: 1.87 GiB of weights, 26.25 GiB of KV pool at 16,388") for line in lines
    )
    assert any("419 of 4,096 tokens" in line for line in lines)
    assert any(line.startswith("decode of 64 rows at 4,096") and " memory " in line for line in lines)
    assert "decode of 256 rows at 4,096: 65 all-reduce of 2 MiB over 8 devices" in lines
    # 2 x 2,048 tokens x 6.98 G weights of layers / 8 devices at 918 TFLOP/s, attention and transfers besides
    (told,) = [line for line in lines if line.startswith("time to first token of a prompt of 2,048 ")]
    fast, slow = map(float, re.findall(r"([\d.]+) to ([\d.]+) ms", told)[0])
    assert 2 * 2048 * 6.98e9 / 8 / 918e12 * 1e3 < fast < slow < 3 * fast
    assert any(line.startswith("Times are estimates") for line in lines)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--tp-size", "8", "--kv-dtype", "bfloat16", "--json"]) == 0
    (layout,) = json.loads(capsys.readouterr().out)["layouts"]
    assert layout["tensor"] == 8 and layout["steps"][0]["compiled"] is None
    assert layout["steps"][0]["transfers"] == [
        {"kind": "all-reduce", "devices": 8, "bytes": 8192, "count": 65, "always": True}
    ]


def test_the_picture_shows_every_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.png"
    assert main([*ASKED, "--json", "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    plan = radixmesh.plan(model_path="llama-3.1-8b", topology="v6e:2x4", compile=False)
    (axes,) = draw(plan).axes
    fast, slow = axes.lines[::2], axes.lines[1::2]
    assert len(fast) == len(slow) == len(layouts) == 4
    for layout, peak, reached in zip(layouts, fast, slow, strict=True):
        steps = [step for step in layout["steps"] if step["kind"] == "decode"]
        for line, seconds in ((peak, "seconds"), (reached, "slow_seconds")):
            want = [(1e3 * step[seconds], step["rows"] / step[seconds]) for step in steps]
            assert np.asarray(line.get_xydata()) == pytest.approx(np.array(want))
        assert peak.get_label() == f"data={layout['data']}, tensor={layout['tensor']}"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("plan.pdf", "accepted is a file name that ends in .png"),
        ("nowhere/plan.png", "accepted is a file in a folder that exists"),
    ],
)
def test_a_picture_that_cannot_be_written(file: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--plot", file]) == 2
    assert said in capsys.readouterr().err


def test_a_picture_needs_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("radixmesh.engine.cli.plan_plot.find_spec", lambda name: None)
    assert main([*ASKED, "--plot", "plan.png"]) == 2
    assert "pip install 'radixmesh[plot]'" in capsys.readouterr().err


def test_a_refusal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model-path", "llama-3.1-8b", "--topology", "v5e:1x1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("radixmesh: error: llama-3.1-8b does not fit v5e:1x1: ")
    assert error.endswith("the smallest slice that would do is v5e:2x2\n")
