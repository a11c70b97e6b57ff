"""`radixmesh plan` as a user meets it: fast without compiling, in text and in JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from radixmesh.__main__ import main

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
    assert any(line.startswith("Times are estimates") for line in lines)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--tp-size", "8", "--kv-dtype", "bfloat16", "--json"]) == 0
    (layout,) = json.loads(capsys.readouterr().out)["layouts"]
    assert layout["tensor"] == 8 and layout["steps"][0]["compiled"] is None
    assert layout["steps"][0]["transfers"] == [
        {"kind": "all-reduce", "devices": 8, "bytes": 8192, "count": 65, "always": True}
    ]


def test_a_refusal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model-path", "llama-3.1-8b", "--topology", "v5e:1x1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("radixmesh: error: llama-3.1-8b does not fit v5e:1x1: ")
    assert error.endswith("the smallest slice that would do is v5e:2x2\n")
