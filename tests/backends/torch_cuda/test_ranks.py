"""Several ranks on the CPU, joined by gloo: the same tokens as one, and an end that is noticed."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from radixmesh.backends.models.checkpoint import open_checkpoint
from radixmesh.backends.models.describe import read_spec
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.source import ModelSource
from radixmesh.backends.models.weights import iterate_params
from radixmesh.backends.registry import create_runner, describe_model
from radixmesh.backends.torch_cuda import ranked_runner
from radixmesh.backends.torch_cuda.loader import load_weights
from radixmesh.backends.torch_cuda.rank_wire import Warmup, Wire
from radixmesh.backends.torch_cuda.ranked_runner import RankedRunner
from radixmesh.backends.torch_cuda.ranks import Ranks
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.errors import ConfigError, EngineDeadError
from radixmesh.engine.request import Request, SamplingParams
from tests.tiny_models import save_tiny_model


def config_of(folder: Path, tp_size: int) -> EngineConfig:
    return EngineConfig(
        model_path=str(folder), backend="torch", dtype="float32", page_size=8, max_total_tokens=512,
        max_running_requests=4, chunked_prefill_size=16, tp_size=tp_size,
    )  # fmt: skip


def greedy_tokens(config: EngineConfig) -> list[list[int]]:
    info = describe_model(config)
    runner = create_runner(config, info)
    try:
        runner.warmup()
        engine = Engine(config, info, runner, strict=True)
        rng = np.random.default_rng(0)
        params = SamplingParams(temperature=0, max_new_tokens=8, ignore_eos=True)
        for index in range(6):
            ids = rng.integers(3, 160, 5 + 6 * index).astype(np.int32)
            engine.add_request(Request(id=str(index), prompt_ids=ids, params=params))
        outputs: list[list[int]] = [[] for _ in range(6)]
        while engine.has_work:
            for output in engine.step():
                assert output.error is None
                outputs[int(output.request_id)] += output.token_ids
        return outputs
    finally:
        runner.close()


def two_ranks(folder: Path) -> tuple[Engine, RankedRunner]:
    """Of a tiny model, with a request that waits."""
    save_tiny_model("llama", folder)
    config = config_of(folder, 2)
    info = describe_model(config)
    runner = create_runner(config, info)
    assert isinstance(runner, RankedRunner)
    engine = Engine(config, info, runner)
    ids = np.arange(3, 9, dtype=np.int32)
    engine.add_request(Request(id="0", prompt_ids=ids, params=SamplingParams(max_new_tokens=4)))
    return engine, runner


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tp_size"), [("llama-biased", 4), ("gemma3", 2)])
def test_ranks_say_what_one_says(name: str, tp_size: int, tmp_path: Path) -> None:
    """Four ranks share two KV heads; biases are added once; vocabularies need not come out even."""
    save_tiny_model(name, tmp_path, vocab_size=161)
    assert greedy_tokens(config_of(tmp_path, tp_size)) == greedy_tokens(config_of(tmp_path, 1))


@pytest.mark.slow
def test_a_step_that_fails_on_one_rank_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other waits for its part of a sum, and would for ever."""
    engine, runner = two_ranks(tmp_path)

    def fails(batches: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(runner._own, "forward", fails)
    with pytest.raises(
        EngineDeadError, match="a step failed on rank 0 and cannot end on the others: no room"
    ):
        engine.step()
    runner.close()


@pytest.mark.slow
def test_a_dead_rank_is_noticed(tmp_path: Path) -> None:
    engine, runner = two_ranks(tmp_path)
    other = runner._others[0].process
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    for notices in (engine.step, runner.check, runner.warmup):
        with pytest.raises(EngineDeadError, match="rank 1 ended with status -9"):
            notices()
    runner.close()
    if not torch.cuda.is_available():  # a GPU may wait for the dead rank until its process ends
        assert greedy_tokens(config_of(tmp_path, 2)) == greedy_tokens(config_of(tmp_path, 1))


def test_a_rank_that_dies_as_it_is_told_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket closes a moment before its process counts as ended."""
    runner = object.__new__(RankedRunner)
    dying = subprocess.Popen(["sleep", "60"])
    ours, theirs = socket.socketpair()
    theirs.close()
    other = SimpleNamespace(number=1, process=dying, wire=Wire(ours))
    runner._others = [other]  # type: ignore[list-item]

    def end(_: float) -> None:
        dying.kill()
        dying.wait()

    monkeypatch.setattr(ranked_runner.time, "sleep", end)
    with pytest.raises(EngineDeadError, match="rank 1 ended with status -9"):
        runner.send(Warmup())
    ours.close()


def test_a_rank_that_dies_at_start_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a collective waits for it and nothing tells, as with NCCL."""
    runner = object.__new__(RankedRunner)
    dead = subprocess.Popen(["false"])
    dead.wait()
    runner._others = [SimpleNamespace(number=1, process=dead)]  # type: ignore[list-item]
    ended: list[int] = []
    monkeypatch.setattr(ranked_runner.os, "_exit", ended.append)
    monkeypatch.setattr(ranked_runner, "_GLANCE", 0.01)
    monkeypatch.setattr(ranked_runner, "_GRACE", 0.01)
    with runner._all_needed():
        deadline = time.monotonic() + 20
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ended and set(ended) == {1}


def test_a_size_that_does_not_come_out_even_is_refused(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    config = config_of(tmp_path, 3)
    with pytest.raises(ConfigError, match="tp_size is 3; 4 heads, 2 KV heads and 48 MLP features can be"):
        create_runner(config, describe_model(config))


def test_parts_of_all_ranks_make_the_whole(tmp_path: Path) -> None:
    save_tiny_model("llama-biased", tmp_path)
    source = ModelSource(str(tmp_path), "hf", "tiny")
    spec = read_spec(source)
    params = param_table(spec)

    def layer(ranks: Ranks) -> dict[str, torch.Tensor]:
        stored = iterate_params(spec, params, open_checkpoint(source))
        return dict(load_weights(spec, params, stored, torch.float32, torch.device("cpu"), ranks).layers[1])

    whole, parts = layer(Ranks()), [layer(Ranks(rank, 2)) for rank in range(2)]
    for name, axis in (("o", 1), ("down", 1)):
        torch.testing.assert_close(torch.cat([each[name] for each in parts], axis), whole[name])
    for name in ("o_bias", "down_bias"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name])
    for fused, sizes in (("gate_up", (48, 48)), ("gate_up_bias", (48, 48)), ("qkv", (32, 16, 16))):
        half = [size // 2 for size in sizes]
        split = [each[fused].split(half) for each in parts]
        joined = torch.cat([torch.cat(pieces) for pieces in zip(*split, strict=True)])
        torch.testing.assert_close(joined, whole[fused])
