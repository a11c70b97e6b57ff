"""Memory of one rank's GPU in the other ranks' processes, by the CUDA driver's handles (its chapter on
interprocess communication).

torch's symmetric memory does the same, but numbers its meetings for each process: who starts ranks a second
time would wait for ever for processes that begin at zero.
"""

import ctypes
import struct
import weakref
from ctypes import byref, c_char_p, c_size_t, c_ubyte, c_uint, c_uint64
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .ranks import Ranks

_LAZY_ENABLE_PEER_ACCESS = 1
_TOLD = struct.Struct(
    "?q64s"
)  # whether a rank can share, bytes from its allocation to its tensor, the handle


class _Handle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("reserved", c_ubyte * 64),)


class PeerMemory:
    """Where a tensor of each rank lies, as this rank sees it; the others' are mapped while this lives."""

    def __init__(self, addresses: list[int], mapped: list[int]) -> None:
        self.addresses = addresses
        # not at the interpreter's end: closing waits for the device, which may wait for a rank that died
        weakref.finalize(self, _close, mapped).atexit = False


def map_peers(ranks: Ranks, own: Tensor) -> PeerMemory:
    """Share `own`, on this rank's GPU, and map every other rank's. All ranks of the default process group
    must call this. Raises RuntimeError, also if another rank cannot share its tensor."""
    reason = ""
    try:
        told = _share(own)
    except RuntimeError as error:
        told, reason = bytes(_TOLD.size), str(error)
    mine = torch.frombuffer(bytearray(told), dtype=torch.uint8).to(own.device)
    every = [torch.empty_like(mine) for _ in range(ranks.size)]
    dist.all_gather(every, mine)  # whatever there is to tell: the others wait for it
    shared = [_TOLD.unpack(bytes(each.tolist())) for each in every]
    if not all(can for can, _, _ in shared):
        raise RuntimeError(reason or "another rank cannot share its memory")
    mapped: list[int] = []
    addresses = []
    for rank, (_, offset, handle) in enumerate(shared):
        if rank == ranks.rank:
            addresses.append(own.data_ptr())
        else:
            mapped.append(_open(handle))
            addresses.append(mapped[-1] + offset)
    return PeerMemory(addresses, mapped)


def _share(tensor: Tensor) -> bytes:
    """What a rank tells the others of its tensor."""
    base, size, handle = c_uint64(), c_size_t(), _Handle()
    _call("cuMemGetAddressRange_v2", byref(base), byref(size), c_uint64(tensor.data_ptr()))
    _call("cuIpcGetMemHandle", byref(handle), base)
    return _TOLD.pack(True, tensor.data_ptr() - base.value, bytes(handle))


def _open(handle: bytes) -> int:
    base = c_uint64()
    given = _Handle.from_buffer_copy(handle)
    _call("cuIpcOpenMemHandle_v2", byref(base), given, c_uint(_LAZY_ENABLE_PEER_ACCESS))
    return base.value


def _close(mapped: list[int]) -> None:
    for base in mapped:
        _call("cuIpcCloseMemHandle", c_uint64(base))


def _call(name: str, *arguments: Any) -> None:
    """A function of the driver, in the context that torch made current."""
    driver = _driver()
    if status := getattr(driver, name)(*arguments):
        text = c_char_p()
        driver.cuGetErrorString(status, byref(text))
        raise RuntimeError(f"{name}: {(text.value or b'unknown error').decode()}")


def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeError(f"the CUDA driver cannot be loaded: {error}") from error
