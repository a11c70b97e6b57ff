"""The processes of several hosts that are not the first: `radixmesh serve --node-rank N`."""

import os
import signal
import sys
import traceback
from typing import NoReturn

from ..engine.config import EngineConfig
from ..engine.errors import RadixMeshError
from .registry import create_runner, describe_model


def follow(config: EngineConfig) -> NoReturn:
    """Be one of the processes that process 0 leads, until it is done: this process ends then, with status 0.

    Raises ConfigError and ModelError for what is wrong before process 0 was met.
    """
    from .jax.multihost import FollowingRunner

    info = describe_model(config)
    status = 1
    try:
        runner = create_runner(config, info)
        assert isinstance(runner, FollowingRunner), runner
        # a service manager stops all processes at once: process 0 drains first and then tells
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        runner.warmup()
        runner.follow()
        status = 0
    except RadixMeshError as error:
        print(f"radixmesh: error: {error}", file=sys.stderr)
    except Exception:  # whatever it is, process 0 must learn of it now: from the end of this process
        traceback.print_exc()
    # no interpreter shutdown: jax's would wait for the other processes
    sys.stderr.flush()
    os._exit(status)
