"""What happens when the engine process ends or hangs: the server ends, or starts a new one, within bounds."""

import asyncio
import logging
import time
from collections import deque

from ..errors import RadixMeshError
from .state import Server

log = logging.getLogger("radixmesh.server")

MAX_RESTARTS = 5  # in WINDOW; an engine that dies once more is not started again
WINDOW = 600.0  # seconds
FIRST_PAUSE = 0.5  # seconds before a restart, twice as many before each further one of the window
_WATCH_INTERVAL = 0.25  # seconds between looks at the engine process
_SILENCE = 1.5  # seconds without a sign of life that are not unusual


async def until_engine_is_gone(server: Server) -> None:
    """Return once the engine process has ended for good.

    With `restart_engine` an engine that ends is started again, unless the server is draining or
    MAX_RESTARTS were made in the last WINDOW seconds. A start that fails counts as one. An engine that
    gives no sign of life for `heartbeat_timeout` seconds is killed first.
    """
    restarts: deque[float] = deque()  # when each of the window was made
    while True:
        await _until_ended(server)
        if not server.options.restart_engine or server.draining:
            return
        while restarts and time.monotonic() - restarts[0] > WINDOW:
            restarts.popleft()
        if len(restarts) == MAX_RESTARTS:
            log.error("the engine was restarted %d times in %g s; that is the bound", MAX_RESTARTS, WINDOW)
            return
        await asyncio.sleep(FIRST_PAUSE * 2 ** len(restarts))
        restarts.append(time.monotonic())
        await _restart(server, len(restarts))


async def _until_ended(server: Server) -> None:
    """Return when the engine process has ended, be it that it hung and was killed.

    Silence is counted in looks, not by the clock: where all processes stood still together, in a container
    that was paused, the engine has not hung.
    """
    looks, bound = 0, server.options.heartbeat_timeout
    while server.llm.alive:
        await asyncio.sleep(_WATCH_INTERVAL)
        looks = looks + 1 if server.llm.heartbeat_age > _SILENCE else 0
        if server.options.restart_engine and looks * _WATCH_INTERVAL > bound:
            reason = f"it gave no sign of life for {bound:g} s, by heartbeat_timeout"
            log.error("the engine process is killed: %s", reason)
            server.llm.kill(reason)
            looks = 0


async def _restart(server: Server, number: int) -> None:
    log.warning("the engine process has ended; restart %d of %d in %g s", number, MAX_RESTARTS, WINDOW)
    server.metrics.count_restart()
    try:
        await server.llm.restart()
    except RadixMeshError as error:
        log.error("the engine could not be started again: %s", error)
    else:
        log.warning("the engine serves again")
