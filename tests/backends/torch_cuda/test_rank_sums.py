"""Who sums what the ranks' projections yield, and that the process group's sum is the reference's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from radixmesh.backends.torch_cuda import rank_sums
from radixmesh.backends.torch_cuda.rank_sums import RankSums, start_sums
from radixmesh.backends.torch_cuda.ranks import Ranks
from radixmesh.kernels.all_reduce import reference
from radixmesh.kernels.all_reduce import triton as kernel
from radixmesh.kernels.all_reduce.inbox import empty_inbox, inbox_shape

GPU = torch.device("cuda")  # decided for, never touched


def test_one_rank_has_nothing_to_add() -> None:
    sums, told = start_sums(Ranks(), torch.float32, torch.device("cpu"))
    assert told == ()
    x, residual = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])
    assert sums.add(x) is x
    assert sums.add(x, residual).tolist() == [[11.0, 22.0]]


def test_large_sums_are_left_to_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "all_reduce_add", lambda x, residual, inbox: "one shot")
    monkeypatch.setattr(rank_sums, "all_reduce_add", lambda x, residual: "process group")
    for ranks, last in ((3, "process group"), (2, "one shot")):  # two have nothing to divide
        slots = torch.empty(inbox_shape(ranks, 2048), dtype=torch.int32)
        sums = RankSums(Ranks(0, ranks), empty_inbox(0, slots, [0] * ranks))
        got: list[Any] = [sums.add(torch.zeros(rows, 512)) for rows in (1, 4, 5)]
        assert got == ["one shot", "one shot", last]
    alone: Any = RankSums(Ranks(0, 2)).add(torch.zeros(1, 512))
    assert alone == "process group"


def test_what_keeps_ranks_out_of_each_others_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(device: torch.device) -> str:
        _, (choice,) = start_sums(Ranks(0, 3), torch.bfloat16, device)
        assert (choice.name, choice.value) == ("all_reduce", "process group")
        return choice.reason

    assert reason(torch.device("cpu")) == "ranks on a CPU share no memory"
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: other < 2)
    assert reason(GPU) == "GPU 0 cannot reach the memory of GPU 2"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert reason(GPU) == "AMD GPUs are left to RCCL"


def test_a_rank_that_cannot_map_memory_leaves_all_with_the_process_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("CUDA driver error: not supported\nframe #0")

    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: True)
    monkeypatch.setattr(Ranks, "least", lambda self, value, device: 0)
    inbox = empty_inbox(0, torch.empty(inbox_shape(2, 1024), dtype=torch.int16), [0, 0])
    for opened, reason in (
        (refuse, "CUDA driver error: not supported"),
        (lambda *_: inbox, "another rank could not map its memory"),
    ):
        monkeypatch.setattr(rank_sums, "open_inbox", opened)
        _, (choice,) = start_sums(Ranks(0, 2), torch.bfloat16, GPU)
        assert (choice.value, choice.reason) == ("process group", reason)


@pytest.mark.slow
def test_the_process_groups_sum_is_the_references(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_sum_by_gloo, (str(tmp_path / "meeting"),), nprocs=2)


def _sum_by_gloo(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(meeting, 2), rank=rank, world_size=2)
    shares = np.random.default_rng(0).standard_normal((3, 5, 64)).astype(np.float32)
    residual, shares = shares[2], shares[:2]
    sums, _ = start_sums(Ranks(rank, 2), torch.float32, torch.device("cpu"))
    for base in (None, residual):
        given = None if base is None else torch.from_numpy(base)
        got = sums.add(torch.from_numpy(shares[rank].copy()), given)
        np.testing.assert_array_equal(got.numpy(), reference.all_reduce_add([*shares], base))
    dist.destroy_process_group()
