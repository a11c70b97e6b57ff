"""What happens when the engine process ends: the server ends too, or starts a new one, within bounds."""

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


async def until_engine_is_gone(server: Server) -> None:
    """Return once the engine process has ended for good.

    With `restart_engine` an engine that ends is started again, unless the server is draining or
    MAX_RESTARTS were made in the last WINDOW seconds. A start that fails counts as one.
    """
    restarts: deque[float] = deque()  # when each of the window was made
    while True:
        while server.llm.alive:
            await asyncio.sleep(_WATCH_INTERVAL)
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


async def _restart(server: Server, number: int) -> None:
    log.warning("the engine process has ended; restart %d of %d in %g s", number, MAX_RESTARTS, WINDOW)
    server.metrics.count_restart()
    try:
        await server.llm.restart()
    except RadixMeshError as error:
        log.error("the engine could not be started again: %s", error)
    else:
        log.warning("the engine serves again")
