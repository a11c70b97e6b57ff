"""`radixmesh bench offline` and `bench latency` with the fake backend: counts that are known beforehand."""

import json
from pathlib import Path
from typing import Any

import pytest

from radixmesh.__main__ import main
from radixmesh.engine.cli.bench.latency import LatencyBenchOptions, summarize


def bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "figures.json"
    assert main(["bench", *arguments, "--backend", "fake", "--json", str(path)]) == 0
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def test_random_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--num-prompts", "6", "--random-input-len", "20", "--random-output-len", "5", "--ignore-eos"]
    values = bench(tmp_path, "offline", *sizes)
    assert (values["completed"], values["failed"]) == (6, 0)
    assert values["total_input_tokens"] == 120
    assert values["total_output_tokens"] == 30
    assert values["output_throughput"] == pytest.approx(30 / values["duration"])
    assert values["options"]["random_input_len"] == 20
    assert values["options"]["backend"] == "fake"
    assert "Output token throughput (tok/s):" in capsys.readouterr().out


def test_a_shared_prefix_is_cached_and_can_be_flushed_or_disabled(tmp_path: Path) -> None:
    sizes = "--dataset-name shared-prefix --num-groups 2 --prompts-per-group 4 --prefix-len 64".split()
    sizes += ["--max-running-requests", "1", "--question-len", "8", "--output-len", "2", "--ignore-eos"]
    values = bench(tmp_path, "offline", *sizes, "--flush-cache")
    assert values["total_input_tokens"] == 8 * 72
    # One after another, the three later prompts of each group find the group's 64 tokens.
    assert values["total_cached_tokens"] >= 2 * 3 * 64
    assert bench(tmp_path, "offline", *sizes, "--disable-radix-cache")["total_cached_tokens"] == 0


def test_turns_carry_the_answers_before(tmp_path: Path) -> None:
    sizes = "--dataset-name multi-turn --num-prompts 3 --num-turns 3 --question-len 8 --output-len 4".split()
    values = bench(tmp_path, "offline", *sizes, "--ignore-eos", "--num-warmups", "0")
    assert values["completed"] == 9
    assert values["total_output_tokens"] == 9 * 4
    assert values["total_input_tokens"] == 3 * (8 + (8 + 4 + 8) + (8 + 4 + 8 + 4 + 8))


def test_a_file_of_texts_and_messages(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "hello", "output_len": 2}\n{"messages": [{"role": "user", "content": "hi"}]}\n'
    )
    values = bench(
        tmp_path, "offline", "--dataset-name", "jsonl", "--dataset-path", str(path), "--output-len", "3",
        "--ignore-eos",
    )  # fmt: skip
    assert values["total_output_tokens"] == 2 + 3
    chat = len("<user\nhi>\n<assistant\n")  # a token each: bytes, and three markers
    assert values["total_input_tokens"] == 5 + chat


def test_latency_of_one_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--batch-size 3 --input-len 16 --output-len 4 --num-iters 2".split()
    values = bench(tmp_path, "latency", *sizes)
    assert values["prefill_throughput"] == pytest.approx(3 * 16 / values["prefill_latency"])
    assert values["decode_throughput"] == pytest.approx(3 / values["decode_latency"])
    assert values["total_throughput"] == pytest.approx(3 * 20 / values["total_latency"])
    assert "Prefill." in capsys.readouterr().out


def test_latency_by_hand() -> None:
    options = LatencyBenchOptions(batch_size=2, input_len=10, output_len=5)
    report = summarize([(1.0, 3.0), (2.0, 6.0), (1.5, 4.5)], options)
    assert report.prefill_latency == 1.5
    assert report.total_latency == 4.5
    assert report.decode_latency == 0.75  # of 0.5, 1.0 and 0.75 a step
    assert report.prefill_throughput == pytest.approx(20 / 1.5)
    assert report.decode_throughput == pytest.approx(2 / 0.75)
    assert report.total_throughput == pytest.approx(30 / 4.5)


def test_a_batch_that_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--max-running-requests", "2"], ["--max-total-tokens", "64"]):
        assert main(["bench", "latency", "--backend", "fake", "--batch-size", "3", *more]) == 2
        assert "batch_size is 3" in capsys.readouterr().err
