"""What bounds a client that does not read: few outputs held for it, and the kernel's patience."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.server import generation
from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.server.serve import bind, serve


def test_a_batch_is_not_read_ahead_of_its_reader() -> None:
    made = [0, 0, 0]

    async def stream(index: int) -> AsyncGenerator[tuple[int, Any], None]:
        for _ in range(100):
            made[index] += 1
            yield index, None
            await asyncio.sleep(0)

    async def test() -> None:
        async with aclosing(generation._merge([stream(index) for index in range(3)])) as merged:
            await anext(merged)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert sum(made) <= 1 + 3  # what was read, and one of each stream that waits
            assert sum([1 async for _ in merged]) == 299

    asyncio.run(test())


def test_the_first_error_ends_a_batch() -> None:
    async def good() -> AsyncGenerator[tuple[int, Any], None]:
        while True:
            yield 0, None
            await asyncio.sleep(0)

    async def bad() -> AsyncGenerator[tuple[int, Any], None]:
        yield 1, None
        raise ValueError("no more")

    async def test() -> None:
        with pytest.raises(ValueError, match="no more"):
            async for _ in generation._merge([good(), bad()]):
                pass

    asyncio.run(asyncio.wait_for(test(), 10))


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the option is of Linux")
def test_the_kernel_watches_clients() -> None:
    for timeout, told in ((2.5, 2500), (None, 0)):
        with bind(ServerOptions(port=0, stall_timeout=timeout)) as listener:
            listener.listen()
            client = socket.create_connection(listener.getsockname())
            taken, _ = listener.accept()
            with client, taken:
                assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == told
                assert bool(taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == bool(told)


def test_a_system_without_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    with pytest.raises(ConfigError, match="stall_timeout is set"):
        ServerOptions(stall_timeout=60.0)
    assert ServerOptions(stall_timeout=None).stall_timeout is None


def test_several_hosts_are_not_restarted() -> None:
    config = EngineConfig(nnodes=2, tp_size=2, dist_init_addr="127.0.0.1:1234")
    with pytest.raises(ConfigError, match="restart_engine is set and nnodes is 2"):
        serve(config, ServerOptions(restart_engine=True), None)  # type: ignore[arg-type]
