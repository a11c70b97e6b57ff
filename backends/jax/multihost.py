"""One engine over several hosts: process 0 plans, and all processes launch the same step.

The mesh spans the devices of all processes. What process 0 packs for a step travels to the others as
plain integers, and each launches the same compiled step with it; results are whole on every process
and read on process 0 alone. Scheduler and engine know nothing of it.
"""

import atexit
import dataclasses
import struct
import sys
import time
from typing import Any

import jax
import numpy as np

from ...engine.config import EngineConfig
from ..models.spec import ModelSpec
from .buckets import Part, Shape
from .crew import HEARTBEAT, Crew, Kind, meet
from .runner import JaxRunner

_STEP = struct.Struct("<iii")  # the shape; then the packed words
_GOODBYE = 5  # seconds that processes wait for each other at the end

# Options that may differ between hosts: where files are, and what is process 0's business alone.
_OWN = (
    "node_rank", "model_path", "tokenizer_path", "served_model_name", "chat_template", "revision",
    "compilation_cache_dir", "disable_compilation_cache",
)  # fmt: skip


def join(config: EngineConfig, spec: ModelSpec) -> Crew:
    """Meet the other processes and join `jax.distributed`: `jax.devices()` are those of all then.

    Raises ConfigError when one does not come, or was started with other options or another model.
    """
    assert config.dist_init_addr is not None
    host, port = config.dist_init_addr.rsplit(":", 1)
    options: dict[str, Any] = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in _OWN
    }
    options |= {"jax version": jax.__version__, "model": repr(spec)}
    crew = meet(host, int(port) + 1, config.node_rank, config.nnodes, options)
    jax.config.update("jax_enable_preemption_service", False)  # it would take over SIGTERM
    jax.distributed.initialize(
        config.dist_init_addr,
        config.nnodes,
        config.node_rank,
        cluster_detection_method="deactivate",
        shutdown_timeout_seconds=_GOODBYE,
        coordinator_bind_address=config.dist_init_addr,
    )
    return crew


class _CrewRunner(JaxRunner):
    """What the runners of all processes have in common."""

    def __init__(self, crew: Crew, *args: Any) -> None:
        """`args` are those of `JaxRunner`, on a mesh of all processes' devices."""
        self._crew = crew
        super().__init__(*args)

    def agree(self, tokens: int) -> int:
        """The pool's size: what the process with the least room can hold."""
        return self._crew.minimum(tokens)


class LeadingRunner(_CrewRunner):
    """Process 0's runner: whatever it launches, the others are told to launch too."""

    def warmup(self) -> None:
        """As `JaxRunner.warmup`, and wait until the others are as far."""
        atexit.register(self.close)  # before jax's own, which waits for the others to leave
        super().warmup()
        self._crew.minimum(0)

    def launch(self, shape: Shape, words: np.ndarray) -> dict[str, jax.Array]:
        """As `JaxRunner.launch`, on every process."""
        self._crew.send(Kind.STEP, _STEP.pack(*shape) + words.tobytes())
        return super().launch(shape, words)

    def close(self) -> None:
        """Let the others go, then as `JaxRunner.close`."""
        if not self._crew.parted:
            self._crew.part()
            self._crew.send(Kind.END)
            _leave(self._crew)
        super().close()


class FollowingRunner(_CrewRunner):
    """The runner of any other process: it launches what process 0 launches."""

    def follow(self) -> None:
        """Launch every step that is told, until process 0 is done."""
        self._crew.minimum(0)
        leader, running = self._crew.peers[0], None
        while (told := leader.receive())[0] == Kind.STEP:
            tokens, full, part = _STEP.unpack_from(told[1])
            words = np.frombuffer(told[1], np.int32, offset=_STEP.size)
            words = words.reshape(self._mesh.shape["data"], -1)
            try:
                launched = self.launch(Shape(tokens, bool(full), Part(part)), words)
                jax.block_until_ready(running)  # one step ahead, and an error is raised where it belongs
            except jax.errors.JaxRuntimeError:
                # a collective may be the first to notice that process 0 is gone: the crew says so, and ends
                time.sleep(HEARTBEAT)
                raise
            running = launched
        self._crew.part()
        print("radixmesh: process 0 is done; this process ends with it", file=sys.stderr, flush=True)
        _leave(self._crew)
        self.close()


def _leave(crew: Crew) -> None:
    """End the ties to the other processes, which do the same now."""
    jax.distributed.shutdown()
    crew.close()
