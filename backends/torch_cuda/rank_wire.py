"""What rank 0 and another rank's process say to each other: msgpack in frames, nothing that could run."""

import socket
import struct
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ...engine.batch import U32, ScheduleBatch
from ...engine.config import EngineConfig
from ...engine.runner import ModelInfo
from .ranks import Ranks

_HEADER = struct.Struct("<Q")  # bytes of the message


class Assignment(msgspec.Struct, frozen=True, tag=True):
    """What another rank needs to start."""

    config: EngineConfig
    info: ModelInfo
    ranks: Ranks
    on_gpu: bool
    meeting: str  # file through which the ranks find each other


class Warmup(msgspec.Struct, frozen=True, tag=True):
    """Compile and capture."""


class Step(msgspec.Struct, frozen=True, tag=True):
    """Launch a step: one group's plan, without its requests, which only the host needs."""

    batches: list[ScheduleBatch]


class Constrain(msgspec.Struct, frozen=True, tag=True):
    """Launch the rest of the step before, under masks."""

    masks: U32  # [C, ceil(vocab / 32)]


Message = Assignment | Warmup | Step | Constrain


@dataclass(frozen=True, slots=True)
class Wire:
    """One end of the connection between two ranks. Arrays that come out of it are read-only."""

    socket: socket.socket

    def send(self, message: Message) -> None:
        """Write one message. Raises OSError when the other side is gone."""
        data = msgspec.msgpack.encode(message, enc_hook=_parts_of)
        self.socket.sendall(_HEADER.pack(len(data)) + data)

    def receive(self) -> Message:
        """Wait for the next message. Raises EOFError when the other side is gone."""
        (length,) = _HEADER.unpack(self._exactly(_HEADER.size))
        return _DECODER.decode(self._exactly(length))

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self.socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data


def _parts_of(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    """An array as dtype, shape and bytes."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"a {type(array).__name__} cannot be sent to another rank")
    return array.dtype.str, array.shape, array.tobytes()


def _array_of(_: type, parts: tuple[str, list[int], bytes]) -> np.ndarray:
    dtype, shape, data = parts
    return np.frombuffer(data, dtype).reshape(shape)


_DECODER = msgspec.msgpack.Decoder(Message, dec_hook=_array_of)
