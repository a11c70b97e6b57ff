"""A real server in a process of its own, over the fake backend, on a free loopback port."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).parents[3]

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


@dataclass
class Running:
    """A server process. `log` is its stderr."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until_ready(self, seconds: float = 60) -> "Running":
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"serves \S+ at (http://\S+)", self.text())
            if found:
                self.url = found[1]
                return self
            time.sleep(0.05)
        raise AssertionError(f"no server came up (status {self.process.poll()}):\n{self.text()}")

    def engine(self) -> psutil.Process:
        """The engine's process: the child that runs our code, not multiprocessing's helper."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(each for each in children if "resource_tracker" not in " ".join(each.cmdline()))

    def stats(self) -> dict[str, float]:
        return dict(httpx.get(self.url + "/server_info").json()["stats"])


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
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(main)],
                stderr=log,
                env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
            )
        running.append(Running(process, folder / "log"))
        return running[-1].wait_until_ready() if ready else running[-1]

    yield begin
    for each in running:
        each.process.kill()
        each.process.wait()


@pytest.fixture(scope="session")
def server(start: Start) -> Running:
    """One server that many tests share; none may leave requests in it."""
    return start(options={"max_body_bytes": 100_000})
