"""/health, answered from the engine's heartbeat; /health_generate, by a token; /metrics."""

import asyncio
import uuid

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from ..errors import NotServingError
from ..request import SamplingParams
from .generation import Job, outputs
from .responses import json_response
from .state import Server

PROBE_TIMEOUT = 20.0  # seconds, as SGLang's


def add_health_routes(app: FastAPI, server: Server) -> None:
    """Add /health, /health_generate and /metrics to `app`."""

    @app.get("/health")
    @app.get("/ping")
    async def health() -> Response:
        return _health(server)

    @app.get("/health_generate")
    async def health_generate() -> Response:
        if server.sickness() is None:
            await _probe(server)
        return _health(server)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _health(server: Server) -> Response:
    reason = server.sickness()
    if reason is not None:
        raise NotServingError(reason)
    return json_response({"status": "ok"})


async def _probe(server: Server) -> None:
    """Generate one token. Raises NotServingError when none comes in time."""
    params = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
    job = Job([[0]], [params], f"health-{uuid.uuid4().hex}")
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            async for _ in outputs(server, job):
                pass
    except TimeoutError:
        raise NotServingError(f"the engine generated no token within {PROBE_TIMEOUT:g} s") from None
