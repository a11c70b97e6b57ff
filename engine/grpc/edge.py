"""The gRPC server beside the HTTP one: same engine, same event loop, a port of its own."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ..errors import ConfigError
from ..server.options import ServerOptions
from ..server.state import Server
from .schema import SERVICE
from .service import Guarded, handlers

_HEALTH_INTERVAL = 0.25  # seconds between looks at what /health says


@dataclass(slots=True)
class GrpcEdge:
    """A running gRPC server, at `address`."""

    address: str
    _server: Any
    _health: "asyncio.Task[None]"

    async def stop(self, grace: float) -> None:
        """Take no more calls, and end those that are not done after `grace` seconds."""
        self._health.cancel()
        await self._server.stop(grace)


async def start_grpc(server: Server) -> GrpcEdge:
    """Serve `server` at its options' `grpc_port`. Raises ConfigError when the port cannot be bound."""
    options = server.options
    made = grpc.aio.server(
        interceptors=[Guarded(server)],
        options=[
            ("grpc.max_receive_message_length", min(options.max_body_bytes, 2**31 - 1)),
            ("grpc.max_metadata_size", options.max_header_bytes),
            ("grpc.so_reuseport", 0),  # else two servers share a port, and a client meets either
        ],
    )
    made.add_generic_rpc_handlers([handlers(server)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, made)
    reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], made)
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        port = _listen(made, f"{host}:{options.grpc_port}", options)
    except RuntimeError:
        raise ConfigError(
            f"grpc_port {options.grpc_port} on host {options.host} cannot be bound; accepted are a local"
            " address and a port that is free"
        ) from None
    await made.start()
    watch = asyncio.create_task(_tell_health(server, servicer))
    return GrpcEdge(f"{host}:{port}", made, watch)


def _listen(made: Any, address: str, options: ServerOptions) -> int:
    """Bind `address`, with TLS where HTTP has it; the port. Raises RuntimeError."""
    if options.ssl_certfile is None or options.ssl_keyfile is None:
        return int(made.add_insecure_port(address))
    key, certificate = Path(options.ssl_keyfile).read_bytes(), Path(options.ssl_certfile).read_bytes()
    return int(made.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)])))


async def _tell_health(server: Server, servicer: Any) -> None:
    """Keep grpc.health.v1 at what /health says."""
    told = health_pb2.HealthCheckResponse
    while True:
        status = told.SERVING if server.sickness() is None else told.NOT_SERVING
        for name in ("", SERVICE):
            await servicer.set(name, status)
        await asyncio.sleep(_HEALTH_INTERVAL)
