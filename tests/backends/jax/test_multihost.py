"""Two processes of four simulated devices each: one server. What it answers, and how both end."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from tests.tiny_models import save_tiny_model

pytestmark = pytest.mark.slow

SRC = Path(__file__).parents[3] / "src"
NEW_TOKENS = 16
PROMPTS = [[5, 6, 7, 8], [9] * 30, [100, 3, 50], list(range(20, 60)), [4], [77, 78]]
TOKENIZER = SRC / "radixmesh/backends/fake/tokenizer"  # of bytes
FLAGS = """--dp-size 2 --tp-size 4 --nnodes 2 --max-total-tokens 1024
    --max-running-requests 4 --chunked-prefill-size 8 --port 0""".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model with eight heads of two KV heads each, and its oracle."""
    folder = tmp_path_factory.mktemp("model")
    oracle = save_tiny_model(
        "llama", folder / "tiny", num_attention_heads=8, num_key_value_heads=4, hidden_size=64,
        intermediate_size=64, vocab_size=259,
    )  # fmt: skip
    shutil.copytree(TOKENIZER, folder / "tiny", dirs_exist_ok=True)
    return folder / "tiny", oracle


@dataclass
class Host:
    """One of the two processes; `log` is what it has said."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def status(self, seconds: float = 30) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.text()}") from None


@contextmanager
def two_hosts(folder: Path, logs: Path) -> Iterator[tuple[str, Host, Host]]:
    """Both processes, and the address at which the first serves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    hosts = []
    for rank in range(2):
        command = [sys.executable, "-W", "ignore", "-m", "radixmesh", "serve", *FLAGS]
        command += ["--model-path", str(folder), "--dist-init-addr", address, "--node-rank", str(rank)]
        command += ["--compilation-cache-dir", str(folder.parent / "compiled")]
        with open(logs / f"{rank}", "wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(SRC), "JAX_PLATFORMS": "cpu"}
            process = subprocess.Popen(command, stderr=log, env=environment, start_new_session=True)
        hosts.append(Host(process, logs / f"{rank}"))
    try:
        deadline = time.monotonic() + 240
        while not (found := re.search(r"serves \S+ at (http://\S+)", hosts[0].text())):
            states = [host.process.poll() for host in hosts]
            assert states == [None, None] and time.monotonic() < deadline, [host.text() for host in hosts]
            time.sleep(0.1)
        yield found[1], hosts[0], hosts[1]
    finally:
        for host in hosts:
            with suppress(ProcessLookupError):  # the server and its engine
                os.killpg(host.process.pid, signal.SIGKILL)
            host.process.wait()


def generate(url: str, prompt: list[int], new_tokens: int = NEW_TOKENS, **params: Any) -> list[int]:
    params = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True, **params}
    body = {"input_ids": prompt, "sampling_params": params}
    answer = httpx.post(f"{url}/generate", json=body, timeout=120).raise_for_status().json()
    return list(answer["output_ids"])


def test_they_answer_with_the_tokens_of_one_device_and_stop_together(
    model: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, oracle = model
    with two_hosts(folder, tmp_path) as (url, leader, follower):
        follower.process.terminate()  # as a service manager does that stops all: process 0 decides when
        with ThreadPoolExecutor(2 * len(PROMPTS)) as pool:
            bound = pool.map(lambda prompt: generate(url, prompt, regex="(ab|[c-f]{2})+"), PROMPTS)
            answers = list(pool.map(lambda prompt: generate(url, prompt), PROMPTS))
            for each in bound:
                assert len(each) == NEW_TOKENS and re.fullmatch(b"(ab|[c-f]{2})+", bytes(each))
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            wanted = oracle.generate(
                torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
            assert answer == wanted[0, len(prompt) :].tolist()
        assert follower.process.poll() is None
        leader.process.terminate()
        assert leader.status() == 0, leader.text()
        assert follower.status() == 0, follower.text()
        assert "process 0 is done" in follower.text()


def engine_of(leader: Host) -> psutil.Process:
    (engine,) = psutil.Process(leader.process.pid).children()
    return engine


VICTIMS: dict[str, tuple[Callable[[Host, Host], Any], str]] = {
    "the other": (lambda leader, follower: follower.process, "process 1 at 127.0.0.1 has ended"),
    "the engine": (lambda leader, follower: engine_of(leader), "the engine process has ended"),
    "the server": (lambda leader, follower: leader.process, ""),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_all_end_at_once_when_one_is_killed(victim: str, model: tuple[Path, Any], tmp_path: Path) -> None:
    find, said = VICTIMS[victim]
    with two_hosts(model[0], tmp_path) as (url, leader, follower):
        engine = engine_of(leader)
        work = threading.Thread(target=_ignore_errors, args=(generate, url, PROMPTS[0], 200), daemon=True)
        work.start()
        time.sleep(0.5)
        find(leader, follower).kill()
        started = time.monotonic()
        statuses = leader.status(), follower.status()
        engine.wait(5)
        assert time.monotonic() - started < 15
        assert all(statuses), statuses
        assert said in leader.text()
        if victim != "the other":
            assert "process 0 at 127.0.0.1 has ended" in follower.text()


def _ignore_errors(function: Callable[..., Any], *args: Any) -> None:
    with suppress(httpx.HTTPError):
        function(*args)
