"""`radixmesh bench serve` against `radixmesh serve` with the fake backend, each in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from radixmesh.__main__ import main

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4] / "src")}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "radixmesh", "serve", "--backend", "fake", "--port", "0"],
            stderr=subprocess.PIPE, stdout=out, env=ENV, text=True,
        )  # fmt: skip
        with process:
            assert process.stderr
            for line in process.stderr:
                if match := re.search(r"serves fake at (http://\S+)", line):
                    yield match[1]
                    break
            else:
                raise AssertionError("the server ended before it served")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert process.returncode == 0


def bench(url: str, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "figures.json"
    fixed = ["bench", "serve", "--base-url", url, "--json", str(path), "--ignore-eos"]
    assert main([*fixed, *arguments]) == 0
    values: dict[str, Any] = json.loads(path.read_text())
    return values


SIZES = ["--num-prompts", "5", "--random-input-len", "20", "--random-output-len", "6"]


@pytest.mark.parametrize("protocol", ["openai", "sglang"])
def test_token_ids_are_counted_exactly(url: str, tmp_path: Path, protocol: str) -> None:
    values = bench(url, tmp_path, *SIZES, "--backend", protocol, "--vocab-size", "256")
    assert (values["completed"], values["failed"]) == (5, 0)
    assert values["total_input_tokens"] == 100
    assert values["total_output_tokens"] == 30
    assert 0 < values["mean_ttft_ms"] <= values["mean_e2e_latency_ms"]
    assert values.get("p99_itl_ms", 0) >= 0  # there is none when every answer came in one piece
    assert values["options"]["request_rate"] == "inf"


def test_chat_at_a_rate(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = bench(
        url, tmp_path, *SIZES, "--backend", "openai-chat", "--request-rate", "100", "--max-concurrency", "1"
    )  # fmt: skip
    assert (values["completed"], values["failed"]) == (5, 0)
    assert values["total_output_tokens"] == 30
    assert values["peak_concurrent_requests"] == 1
    assert "Mean TTFT (ms):" in capsys.readouterr().out


def test_a_shared_prefix_is_found_in_the_cache_unless_flushed(url: str, tmp_path: Path) -> None:
    sizes = "--dataset-name shared-prefix --num-groups 1 --prompts-per-group 4 --prefix-len 64".split()
    sizes += "--question-len 8 --output-len 2 --vocab-size 256 --max-concurrency 1 --num-warmups 0".split()
    first = bench(url, tmp_path, *sizes, "--backend", "sglang", "--flush-cache")
    assert 3 * 64 <= first["total_cached_tokens"] < 4 * 64
    again = bench(url, tmp_path, *sizes, "--backend", "sglang")
    assert again["total_cached_tokens"] >= 4 * 64
    flushed = bench(url, tmp_path, *sizes, "--backend", "sglang", "--flush-cache")
    assert flushed["total_cached_tokens"] == first["total_cached_tokens"]


@pytest.mark.parametrize("protocol", ["openai", "openai-chat", "sglang"])
def test_multi_turn(url: str, tmp_path: Path, protocol: str) -> None:
    sizes = "--dataset-name multi-turn --num-prompts 2 --num-turns 3 --question-len 8 --output-len 4".split()
    values = bench(url, tmp_path, *sizes, "--backend", protocol, "--vocab-size", "256")
    assert (values["completed"], values["failed"]) == (6, 0)
    assert values["total_output_tokens"] == 24
    if protocol == "sglang":
        assert values["total_input_tokens"] == 2 * (8 + 20 + 32)


def test_a_server_that_refuses_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "no-such-model", *SIZES, "--vocab-size", "256"]
    assert main(["bench", "serve", "--base-url", url, *options]) == 2
    assert "no-such-model" in capsys.readouterr().err
    assert main(["bench", "serve", "--base-url", url, *options, "--num-warmups", "0"]) == 1
    assert "failed: " in capsys.readouterr().out
