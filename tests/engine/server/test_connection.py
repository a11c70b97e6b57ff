"""What is left of a connection whose client is gone."""

import asyncio
import gc
import socket
import struct
from collections.abc import Callable
from typing import Any

import uvicorn

from radixmesh.engine.server.connection import connection_class


async def app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Answers at once, whoever may still be there."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
    await send({"type": "http.response.body", "body": b"x" * 1000})


async def leave(port: int, resets: bool) -> None:
    """Ask, and be gone before all of the answer is read: the server hears of it when it reads or writes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readexactly(10)
    if resets:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


def test_nothing_is_left_of_a_client_that_left_early() -> None:
    kind = connection_class(30)
    config = uvicorn.Config(
        app, port=0, http=kind, ws="none", lifespan="off", log_config=None, timeout_keep_alive=600
    )

    def left() -> int:
        gc.collect()
        return sum(type(each) is kind for each in gc.get_objects())  # isinstance() asks the object

    async def test() -> None:
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        await asyncio.gather(*(leave(port, resets=number % 2 == 1) for number in range(40)))
        for _ in range(100):
            if not left():
                break
            await asyncio.sleep(0.1)
        assert not left()
        server.should_exit = True
        await task

    asyncio.run(test())
