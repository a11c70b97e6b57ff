"""What the command line needs from outside the engine; `__main__` gives it.

Engine code imports no backend, so whatever knows of devices comes in as a function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from ..config import Choice, EngineConfig
from ..plan import Plan, PlanOptions
from ..runner import Backend


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the backends find out about this machine, for `radixmesh doctor`. Sizes in bytes."""

    hardware: dict[str, str | int | None]  # the hardware layer's fields by name
    choices: tuple[Choice, ...]  # the backend that would serve, and other automatic choices, with reasons
    models: dict[str, str | None] = field(default_factory=dict)  # embedded model -> its file, None: not here
    folders: dict[str, str] = field(default_factory=dict)  # what a cache folder is for -> its path


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What `radixmesh convert` did. Sizes in bytes."""

    weights: int  # as written
    seconds: float
    peak_memory: int  # of this process, from its start
    memory_before: int  # before the first tensor was read: interpreter and libraries


@dataclass(frozen=True)
class Hosts:
    """The hosts of a TPU slice: this one's number, and the addresses of all in order."""

    rank: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Joints:
    """The backends' side of the command line."""

    version: str
    find_backend: Callable[[EngineConfig], Backend]
    survey: Callable[[EngineConfig], Machine]
    convert: Callable[[EngineConfig, Path], Conversion]
    plan: Callable[[PlanOptions], Plan]
    slice_hosts: Callable[[], Hosts | None]  # of the TPU slice that this machine is one of several hosts of
    follow: Callable[[EngineConfig], NoReturn]  # a process of several hosts that is not the first
