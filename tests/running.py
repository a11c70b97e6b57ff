"""A server in a process of its own, on a free loopback port."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]


@dataclass
class Running:
    """A server process. `log` is its stderr."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    @staticmethod
    def start(arguments: Sequence[str], log: Path, **env: str) -> "Running":
        """Run `python ARGUMENTS` with our sources on the path."""
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", *arguments],
                stderr=file,
                env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", **env},
            )
        return Running(process, log)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until_ready(self, seconds: float = 60) -> "Running":
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"serves \S+ at (https?://\S+)", self.text())
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
        return dict(httpx.get(self.url + "/server_info", timeout=30).json()["stats"])

    def end(self) -> None:
        """Kill it, whatever it does."""
        self.process.kill()
        self.process.wait()
