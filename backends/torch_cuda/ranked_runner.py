"""Tensor parallelism over processes: rank 0 in the engine's process, each other rank in one of its own.

Every rank runs every step. The host's plan goes to the others through a socket; what they compute is
joined on the devices, so that each samples the same tokens and only rank 0's are read.
"""

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from ...engine.batch import U32, ScheduleBatch, StepTokens
from ...engine.config import Choice, EngineConfig
from ...engine.errors import EngineDeadError
from ...engine.runner import ModelInfo
from .rank_wire import Assignment, Constrain, Message, Step, Warmup, Wire
from .ranks import Ranks
from .runner import Launched, TorchRunner

_CLOSE_TIMEOUT = 5.0  # seconds that a rank has to end by itself
_GLANCE = 0.2  # seconds between looks at the other ranks while starting
_GRACE = 5.0  # seconds in which a collective should notice that a rank is gone


class RankedRunner:
    """A runner whose other ranks follow. When one of them ends, so does every step from then on."""

    def __init__(
        self, config: EngineConfig, info: ModelInfo, on_gpu: bool, build: Callable[[Ranks], TorchRunner]
    ) -> None:
        """Start the other ranks, then `build` this one."""
        self._folder = tempfile.TemporaryDirectory(prefix="radixmesh-ranks-")
        meeting = str(Path(self._folder.name, "meeting"))
        self._others: list[_Rank] = []
        ranks = Ranks(0, config.tp_size)
        try:
            for rank in range(1, ranks.size):
                told = replace(info, choices=())  # for people; rank 0 prints them
                assignment = Assignment(config, told, replace(ranks, rank=rank), on_gpu, meeting)
                self._others.append(_Rank(assignment))
            with self._all_needed():
                join(ranks, on_gpu, meeting)
                self._own = build(ranks)
        except BaseException:
            self.close()
            raise
        backend = "NCCL" if on_gpu else "gloo"
        choice = Choice("tp_size", ranks.size, f"as asked: one process a rank, joined by {backend}")
        self.choices = (*self._own.choices, choice)
        self.capacity = self._own.capacity

    def warmup(self) -> None:
        """Compile and capture on every rank."""
        self.send(Warmup())
        with self._all_needed():
            self._own.warmup()

    def forward(self, batches: Sequence[ScheduleBatch | None]) -> "_Watched":
        """Launch a step on every rank. Raises EngineDeadError if one has ended, or if this one fails."""
        self.send(Step([replace(batch, rows=(), sampled=()) for batch in batches if batch is not None]))
        with self.in_step():
            return _Watched(self._own.forward(batches), self)

    def close(self) -> None:
        """End the other ranks and release this one's device."""
        whole = all(each.process.poll() is None for each in self._others)
        for each in self._others:
            each.close()
        # a sum may wait for ever for who is gone; to free memory that the ranks share waits for the device
        if hasattr(self, "_own"):
            if whole:
                self._own.close()
            else:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._own))
        if dist.is_initialized() and (whole or dist.get_backend() == "gloo"):
            dist.destroy_process_group()
        self._folder.cleanup()

    def send(self, message: Message) -> None:
        """Tell every other rank. Raises EngineDeadError if one has ended."""
        self.check()
        with self.in_step():  # one may be ending right now
            for each in self._others:
                each.wire.send(message)

    @contextmanager
    def _all_needed(self) -> Iterator[None]:
        """End this process if another rank ends meanwhile and no collective tells: it would wait for ever."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_GLANCE):
                try:
                    self.check()
                except EngineDeadError as error:
                    if not done.wait(_GRACE):
                        print(f"radixmesh: {error}", file=sys.stderr, flush=True)
                        os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            done.set()

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """What fails on one rank alone leaves the others waiting for it: there is no next step."""
        try:
            yield
        except EngineDeadError:
            raise
        except Exception as error:
            time.sleep(_GLANCE)  # a rank that has just ended may still count as running
            self.check()
            raise EngineDeadError(f"a step failed on rank 0 and cannot end on the others: {error}") from error

    def check(self) -> None:
        """Raises EngineDeadError if another rank has ended."""
        for each in self._others:
            if each.process.poll() is not None:
                raise EngineDeadError(
                    f"rank {each.number} ended with status {each.process.returncode}; what it said is above"
                )


@dataclass(frozen=True, slots=True)
class _Watched:
    """A launched step whose other ranks may end: then it would never be done."""

    launched: Launched
    runner: RankedRunner

    def constrain(self, masks: Sequence[U32 | None]) -> None:
        for each in masks:
            assert each is not None, "no row waits for masks"
            self.runner.send(Constrain(each))
        with self.runner.in_step():
            self.launched.constrain(masks)

    def result(self) -> list[StepTokens]:
        with self.runner.in_step():
            while not self.launched.ready():
                self.runner.check()
                time.sleep(20e-6)
            return self.launched.result()


class _Rank:
    """The process of another rank."""

    def __init__(self, assignment: Assignment) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # not multiprocessing: that would run the user's main module a second time
            code = (
                f"import sys; sys.path[:] = {sys.path!r}\nfrom {__package__}.rank_process import main; main()"
            )
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # stdout is for answers
                pass_fds=(theirs.fileno(),),
            )
        self.number = assignment.ranks.rank
        self.wire = Wire(ours)
        self.wire.send(assignment)

    def close(self) -> None:
        """Hang up, which ends the process."""
        self.wire.socket.close()
        try:
            self.process.wait(_CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def join(ranks: Ranks, on_gpu: bool, meeting: str) -> None:
    """Make torch's default process group of all ranks."""
    if not on_gpu:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks.size))
    store = dist.FileStore(meeting, ranks.size)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=ranks.rank,
        world_size=ranks.size,
        device_id=torch.device("cuda", ranks.rank) if on_gpu else None,  # else NCCL guesses, and says so
    )
