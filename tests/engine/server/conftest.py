"""A real server in a process of its own, over the fake backend, on a free loopback port."""

from collections.abc import Callable, Iterator

import pytest

from tests.running import Running

_MAIN = """
import sys
from radixmesh.backends.fake.backend import FAKE_BACKEND
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import RadixMeshError
from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.server.serve import serve

if __name__ == "__main__":
    try:
        sys.exit(serve(EngineConfig(backend="fake", **{config}), ServerOptions(**{options}), FAKE_BACKEND))
    except RadixMeshError as error:
        sys.exit(str(error))
"""


Start = Callable[..., Running]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a server: `start(config={...}, options={...})`; `ready=False` does not wait for it."""
    running: list[Running] = []

    def begin(
        config: dict[str, object] | None = None,
        options: dict[str, object] | None = None,
        ready: bool = True,
    ) -> Running:
        folder = tmp_path_factory.mktemp("server")
        main = folder / "main.py"
        main.write_text(_MAIN.format(config=config or {}, options={"port": 0, **(options or {})}))
        running.append(Running.start([str(main)], folder / "log"))
        return running[-1].wait_until_ready() if ready else running[-1]

    yield begin
    for each in running:
        each.end()


@pytest.fixture(scope="session")
def server(start: Start) -> Running:
    """One server that many tests share; none may leave requests in it."""
    return start(options={"max_body_bytes": 100_000})
