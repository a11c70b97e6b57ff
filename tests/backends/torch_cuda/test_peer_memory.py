"""What ranks tell each other of their memory, with a driver that keeps a table of allocations."""

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from radixmesh.backends.torch_cuda import peer_memory
from radixmesh.backends.torch_cuda.peer_memory import map_peers
from radixmesh.backends.torch_cuda.ranks import Ranks

APART = 1 << 40  # where this process sees what another allocated


class Driver:
    """The functions of libcuda that map memory between processes, as CUDA's reference describes them. An
    allocation begins 256 bytes before the tensor in it; its handle is its address."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.open: list[int] = []

    def cuMemGetAddressRange_v2(self, base: Any, size: Any, pointer: ctypes.c_uint64) -> int:
        base._obj.value, size._obj.value = pointer.value - 256, 4096
        return 0

    def cuIpcGetMemHandle(self, handle: Any, base: ctypes.c_uint64) -> int:
        ctypes.memmove(handle._obj.reserved, base.value.to_bytes(8, "little"), 8)
        return self.status

    def cuIpcOpenMemHandle_v2(self, base: Any, handle: Any, flags: ctypes.c_uint) -> int:
        assert flags.value == 1  # else the other GPU's memory could be named, but not be reached
        base._obj.value = APART + int.from_bytes(bytes(handle.reserved)[:8], "little")
        self.open.append(base._obj.value)
        return 0

    def cuIpcCloseMemHandle(self, base: ctypes.c_uint64) -> int:
        self.open.remove(base.value)
        return 0

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"invalid argument"
        return 0


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver, list[bytes]], None]:
    """What this rank (0) tells is followed by what the others told."""

    def prepare(driver: Driver, others: list[bytes]) -> None:
        monkeypatch.setattr(peer_memory, "_driver", lambda: driver)

        def gather(every: list[torch.Tensor], told: torch.Tensor) -> None:
            for into, each in zip(every, [bytes(told.tolist()), *others], strict=True):
                into.copy_(torch.frombuffer(bytearray(each), dtype=torch.uint8))

        monkeypatch.setattr(dist, "all_gather", gather)

    return prepare


def test_every_rank_finds_the_others_tensors_and_lets_them_go(gathered: Any) -> None:
    own, other = torch.zeros(8), torch.zeros(8)
    driver = Driver()
    gathered(driver, [])
    told = peer_memory._share(other)
    gathered(driver, [told])
    peers = map_peers(Ranks(0, 2), own)
    assert peers.addresses == [own.data_ptr(), APART + other.data_ptr()]
    assert driver.open == [APART + other.data_ptr() - 256]
    del peers
    gc.collect()
    assert not driver.open


def test_a_rank_that_cannot_share_is_every_ranks_error(gathered: Any) -> None:
    """All must have told, whatever it is, before any of them gives up: the others wait."""
    own = torch.zeros(8)
    gathered(Driver(), [])
    good = peer_memory._share(own)
    gathered(Driver(status=1), [good])
    with pytest.raises(RuntimeError, match="cuIpcGetMemHandle: invalid argument"):
        map_peers(Ranks(0, 2), own)
    gathered(Driver(), [bytes(len(good))])
    with pytest.raises(RuntimeError, match="another rank cannot share its memory"):
        map_peers(Ranks(0, 2), own)
