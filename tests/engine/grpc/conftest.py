"""A real server with the gRPC service, over the fake backend."""

import re
from collections.abc import Iterator

import grpc
import pytest

from tests.engine.server.conftest import Start
from tests.engine.server.conftest import start as start
from tests.running import Running


def grpc_address(running: Running) -> str:
    """Where a server that is ready serves gRPC."""
    found = re.search(r"serves gRPC at (\S+)", running.text())
    assert found, running.text()
    return found[1]


@pytest.fixture(scope="session")
def served(start: Start) -> Running:
    """One server that many tests share; none may leave requests in it."""
    return start(options={"grpc_port": 0, "max_body_bytes": 100_000})


@pytest.fixture
def channel(served: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(grpc_address(served)) as channel:
        yield channel
