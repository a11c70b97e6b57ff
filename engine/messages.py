"""What the engine process and its parent say to each other: msgspec structs, tagged by their name."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import msgspec
import numpy as np

from .config import Choice, EngineConfig
from .errors import ConfigError
from .outputs import TokenOutput
from .request import Request, SamplingParams
from .runner import Backend, ModelInfo, RunnerCapacity
from .snapshot import GroupView
from .stats import EngineStats


class Start(msgspec.Struct):
    """What the engine process begins with. The backend's functions travel as their names, never as code."""

    config: EngineConfig
    describe: str  # "module:function", as create_runner
    create_runner: str

    @classmethod
    def of(cls, config: EngineConfig, backend: Backend) -> "Start":
        """The message. Raises ConfigError for a backend whose functions no other process could import."""
        return cls(config, _name_of(backend.describe), _name_of(backend.create_runner))

    def backend(self) -> Backend:
        """The backend, its modules imported. Raises ImportError, AttributeError."""
        return Backend(_named(self.describe), _named(self.create_runner))


def _name_of(function: Callable[..., Any]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or module == "__main__" or not name.isidentifier():
        raise ConfigError(
            f"the backend's {function!r} cannot be found by another process; accepted is a function of a"
            " module that can be imported"
        )
    return f"{module}:{name}"


def _named(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


class AddRequest(msgspec.Struct, tag=True):
    """Queue one request. It is answered by `Tokens`, or by one `Refused`."""

    id: str
    prompt_ids: bytes  # int32, native byte order
    params: SamplingParams
    seed: int
    eos_token_ids: frozenset[int]
    priority: int
    extra_key: str
    parent_id: str | None
    arrival_time: float  # time.monotonic(), which is one clock for all processes

    @classmethod
    def of(cls, request: Request, engine_id: str) -> "AddRequest":
        """The message for a new request, which the engine will know as `engine_id`."""
        return cls(
            engine_id,
            request.prompt_ids.astype(np.int32, copy=False).tobytes(),
            request.params,
            request.seed,
            request.eos_token_ids,
            request.priority,
            request.extra_key,
            request.parent_id,
            request.arrival_time,
        )

    def to_request(self) -> Request:
        """The request as the engine takes it."""
        return Request(
            self.id,
            np.frombuffer(self.prompt_ids, np.int32),
            self.params,
            self.seed,
            self.eos_token_ids,
            self.priority,
            self.extra_key,
            self.parent_id,
            self.arrival_time,
        )


class Abort(msgspec.Struct, tag=True):
    """End requests; those that are not there are no error."""

    ids: list[str]


class FlushCache(msgspec.Struct, tag=True):
    """Empty the radix cache; answered by `Flushed` with the same number."""

    call: int


class TakeSnapshot(msgspec.Struct, tag=True):
    """Look at the engine; answered by `Snapshot` with the same number."""

    call: int


class Shutdown(msgspec.Struct, tag=True):
    """End the process. Open requests are dropped."""


ToEngine = AddRequest | Abort | FlushCache | TakeSnapshot | Shutdown


class Described(msgspec.Struct, tag=True):
    """What model it is, before any weight is read."""

    info: ModelInfo


class Ready(msgspec.Struct, tag=True):
    """The model is loaded and warm; requests are taken from now on."""

    capacity: RunnerCapacity
    choices: tuple[Choice, ...]


class StartFailed(msgspec.Struct, tag=True):
    """The engine could not start. `kind` is the error's class, the message its own."""

    kind: Literal["ConfigError", "ModelError", "other"]
    message: str


class Tokens(msgspec.Struct, tag=True):
    """All that one step brought."""

    outputs: list[TokenOutput]


class Refused(msgspec.Struct, tag=True):
    """A request that the engine does not take: the parts of a RequestError."""

    request_id: str
    message: str
    field: str | None
    status: int


class Flushed(msgspec.Struct, tag=True):
    """Whether the cache was emptied."""

    call: int
    done: bool


class Snapshot(msgspec.Struct, tag=True):
    """What the engine looks like between two steps, group by group."""

    call: int
    groups: list[GroupView]


class Heartbeat(msgspec.Struct, tag=True):
    """Sent by the loop itself, so that it tells of the loop's life and not only of the process's."""

    turn: float  # time.monotonic() of the loop's turn
    stats: EngineStats


class Fatal(msgspec.Struct, tag=True):
    """The loop ends because of this; the process follows."""

    message: str


FromEngine = Described | Ready | StartFailed | Tokens | Refused | Flushed | Snapshot | Heartbeat | Fatal
