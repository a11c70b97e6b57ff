"""The processes of one engine on several hosts: how they meet, talk, and notice that one is gone.

Process 0 leads. Every other keeps one TCP connection to it, on the port after that of `jax.distributed`:
frames of a kind and a payload, JSON or packed integers, nothing that could run. Both sides send a
heartbeat a second. Who loses the other ends its own process with status 1, from a thread of its own,
because the main thread may wait in a collective for what will never come: so all end with one.
"""

import json
import os
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ...engine.errors import ConfigError

HEARTBEAT = 1.0  # seconds between signs of life
SILENCE = 30.0  # seconds without one after which a host counts as gone; one that ends is known at once
GREETING = 5.0  # seconds that who calls has to say who it is
MEETING = 300.0  # seconds in which all processes must have come

_HEADER = struct.Struct("<IB")  # bytes of the payload, kind
_VALUE = struct.Struct("<q")
_MAX_FRAME = 1 << 28  # bytes


class Kind(IntEnum):
    """What a frame is about."""

    ALIVE = 0
    HELLO = 1  # JSON: who comes, with which options; then text: why it is refused, or nothing
    VALUE = 2  # int64: see `Crew.minimum`
    STEP = 3  # a step to launch
    END = 4  # the leader is done


class Peer:
    """The connection to another process of the crew. Loss of it ends this process."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self.name = name
        connection.settimeout(SILENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._frames: queue.SimpleQueue[tuple[Kind, bytes]] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self.parted = False
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame; blocks while the other side is more than the network's buffers behind."""
        try:
            with self._sending:
                send_frame(self._connection, kind, payload)
        except OSError as error:
            self._lose(_how(error))

    def receive(self, kind: Kind | None = None) -> tuple[Kind, bytes]:
        """Wait for the next frame, which must be of `kind` if one is given."""
        got, payload = self._frames.get()
        if kind is not None and got != kind:
            self._lose(f"sent {got.name} where {kind.name} was due")
        return got, payload

    def part(self) -> None:
        """From now on the other side may go."""
        self.parted = True

    def close(self) -> None:
        """End the connection. The other side, unless it parted too, ends with it."""
        self.part()
        with suppress(OSError):  # it may be closed already
            self._connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        with self._connection as connection:
            try:
                while True:
                    kind, payload = receive_frame(connection)
                    if kind != Kind.ALIVE:
                        self._frames.put((kind, payload))
            except (OSError, EOFError, ValueError) as error:
                self._lose(_how(error))

    def _beat(self) -> None:
        while not self.parted:
            self.send(Kind.ALIVE)
            time.sleep(HEARTBEAT)

    def _lose(self, how: str) -> None:
        if not self.parted:
            end_process(f"{self.name} {how}; this process ends with it")


def _how(error: Exception) -> str:
    """What an error of a connection says of the other side."""
    if isinstance(error, TimeoutError):
        return f"has given no sign of life for {SILENCE:g} s"
    if isinstance(error, (EOFError, ConnectionError)):
        return "has ended"
    return f"cannot be understood ({error})"


def end_process(reason: str) -> None:
    """Say why and end this process with status 1, whatever its other threads are waiting for."""
    sys.stderr.write(f"radixmesh: error: {reason}\n")
    sys.stderr.flush()
    os._exit(1)


@dataclass(frozen=True)
class Crew:
    """This process's place among those that run one engine: `peers` are the others, or the leader alone."""

    rank: int
    peers: Sequence[Peer]

    def minimum(self, value: int) -> int:
        """The smallest of all processes' values; none returns before all have called."""
        if self.rank == 0:
            value = min(value, *(_VALUE.unpack(peer.receive(Kind.VALUE)[1])[0] for peer in self.peers))
        for peer in self.peers:
            peer.send(Kind.VALUE, _VALUE.pack(value))
        if self.rank != 0:
            (value,) = _VALUE.unpack(self.peers[0].receive(Kind.VALUE)[1])
        return value

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame to every peer."""
        for peer in self.peers:
            peer.send(kind, payload)

    def part(self) -> None:
        """From now on the other processes may go."""
        for peer in self.peers:
            peer.part()

    @property
    def parted(self) -> bool:
        """Whether the others may go."""
        return all(peer.parted for peer in self.peers)

    def close(self) -> None:
        """End every connection."""
        for peer in self.peers:
            peer.close()


def meet(host: str, port: int, rank: int, size: int, options: Mapping[str, Any]) -> Crew:
    """Wait until all `size` processes are here and agree on `options`, values that JSON can hold.

    Process 0 listens at host:port. Raises ConfigError when a process does not come, comes twice, or has
    other options, naming the first that differs.
    """
    host = host.strip("[]")  # of an IPv6 address
    options = json.loads(json.dumps(options))  # as the others will see it
    if rank == 0:
        return Crew(0, _gather(host, port, size, options))
    connection = _call(host, port)
    try:
        send_frame(connection, Kind.HELLO, json.dumps({"rank": rank, "options": options}).encode())
        _, refusal = receive_frame(connection)
    except (OSError, EOFError, ValueError) as error:
        connection.close()
        raise ConfigError(f"dist_init_addr is {host}:{port - 1}, whose process 0 does not answer") from error
    if refusal:
        connection.close()
        raise ConfigError(refusal.decode())
    return Crew(rank, [Peer(connection, f"process 0 at {host}")])


def _gather(host: str, port: int, size: int, options: Mapping[str, Any]) -> list[Peer]:
    """The leader's side of `meet`."""
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise ConfigError(
            f"dist_init_addr is {host}:{port - 1}: port {port} of that host cannot be bound ({error});"
            " accepted is an address of process 0 with two free ports in a row"
        ) from None
    here: dict[int, Peer] = {}
    deadline = time.monotonic() + MEETING
    try:
        while len(here) < size - 1:
            missing = ", ".join(str(rank) for rank in range(1, size) if rank not in here)
            print(f"radixmesh: process 0 of {size} waits for process {missing}", file=sys.stderr, flush=True)
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            connection, (address, *_) = listener.accept()
            if (rank := _welcome(connection, here, size, options)) is not None:
                here[rank] = Peer(connection, f"process {rank} at {address}")
    except (ConfigError, TimeoutError) as error:
        Crew(0, list(here.values())).close()
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"nnodes is {size}; process {missing} did not come in {MEETING:g} s") from None
    finally:
        listener.close()
    return [here[rank] for rank in sorted(here)]


def _welcome(
    connection: socket.socket, here: Mapping[int, Peer], size: int, options: Mapping[str, Any]
) -> int | None:
    """The rank of who has called, or None if it is none of ours. Raises ConfigError if it does not fit."""
    connection.settimeout(GREETING)
    try:
        kind, payload = receive_frame(connection)
        hello = json.loads(payload)
        rank, theirs = int(hello["rank"]), dict(hello["options"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        connection.close()
        return None
    differ = [name for name in options if options[name] != theirs.get(name)]
    refusal = ""
    if differ:
        name = differ[0]
        refusal = f"{name} is {options[name]!r} for process 0 and {theirs.get(name)!r} for process {rank}"
        refusal += "; accepted is one value for all"
    elif rank in here or not 0 < rank < size:
        refusal = f"node_rank is {rank} for two processes; accepted is another number below {size} for each"
    send_frame(connection, Kind.HELLO, refusal.encode())
    if refusal:
        connection.close()
        raise ConfigError(refusal)
    return rank


def _call(host: str, port: int) -> socket.socket:
    """A connection to the leader, who may start later than this process."""
    deadline = time.monotonic() + MEETING
    while True:
        try:
            connection = socket.create_connection((host, port), GREETING)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"dist_init_addr is {host}:{port - 1}, where no process 0 answers ({error})"
                ) from None
            time.sleep(HEARTBEAT / 4)
    connection.settimeout(MEETING)  # the leader may be busy with another
    return connection


def send_frame(connection: socket.socket, kind: Kind, payload: bytes) -> None:
    """Write one frame. Raises OSError."""
    connection.sendall(_HEADER.pack(len(payload), kind) + payload)


def receive_frame(connection: socket.socket) -> tuple[Kind, bytes]:
    """Read one frame. Raises EOFError at the end, TimeoutError after silence, ValueError for nonsense."""
    length, kind = _HEADER.unpack(_exactly(connection, _HEADER.size))
    if length > _MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes")
    return Kind(kind), _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(data)
