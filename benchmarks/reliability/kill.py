"""kill -9 of the engine process under load: who waits hears of it, and soon the server serves again."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import httpx

from tests.running import Running

from .report import Report
from .served import is_idle, post, served, wait_for

ENDLESS = 100_000  # tokens; to the end of the context
CHAT = {"messages": [{"role": "user", "content": "On and on."}], "max_tokens": ENDLESS}
SAMPLING = {"max_new_tokens": ENDLESS, "ignore_eos": True}
# path -> (body, what the error looks like in a stream)
DIALECTS: dict[str, tuple[dict[str, Any], bytes]] = {
    "/v1/completions": ({"prompt": "On and", "max_tokens": ENDLESS, "ignore_eos": True}, b"engine_dead"),
    "/v1/chat/completions": ({**CHAT, "ignore_eos": True}, b"engine_dead"),
    "/generate": ({"text": "On and", "sampling_params": SAMPLING}, b"engine_dead"),
}


@dataclass(frozen=True)
class Kill:
    """Open requests, whole and streamed, of every dialect; `model` is an embedded one, or fake."""

    model: str = "fake"
    requests: int = 60
    kills: int = 3
    seconds: float = 2.0  # in which every open request must have ended
    load_time: float = 1.0  # seconds that the fake takes to start


def run(trial: Kill) -> Report:
    """Kill, look, wait until it serves again, and once more."""
    model = ["--model-path", trial.model]
    if trial.model == "fake":
        path = f"fake:step_time=0.01,load_time={trial.load_time}"
        model = ["--backend", "fake", "--model-path", path, "--context-length", "200000"]
        model += ["--max-total-tokens", "1000000"]
    with served(*model, "--restart-engine") as server:
        report = Report(f"kill -9 of the engine of {trial.model}, {trial.kills} times")
        first = _say(server.url)
        for number in range(1, trial.kills + 1):
            asyncio.run(_kill(trial, server, report, number))
            same = _say(server.url) == first
            report.check(f"{number}: answers as before", same, "True", same)
        counted = f"radixmesh:engine_restarts_total {trial.kills}.0"
        metrics = httpx.get(server.url + "/metrics").text
        report.check("restarts counted", counted in metrics, "True", counted in metrics)
        idle = wait_for(server.url, is_idle, 10)
        report.check("nothing left, after s", idle, "<= 10", idle <= 10)
    return report


def _say(url: str) -> str:
    body = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    answer = httpx.post(url + "/v1/completions", json=body, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["text"])


async def _kill(trial: Kill, server: Running, report: Report, number: int) -> None:
    """Open all requests, kill, and tell what each of them heard and when."""
    endings: list[tuple[float, bool]] = []  # when it ended, and whether with the error of its dialect
    opened = asyncio.Semaphore(0)

    async def one(index: int) -> None:
        path = list(DIALECTS)[index % len(DIALECTS)]
        body, sign = DIALECTS[path]
        streamed = index // len(DIALECTS) % 2 == 0
        reader, writer = await post(server.url, path, {**body, "stream": streamed})
        got = b""
        if streamed:  # a stream that runs; the others may wait for a place
            got = await reader.readuntil(b"data: ")
        opened.release()
        got = got[:50] + await reader.read()
        good = sign in got and (got.startswith(b"HTTP/1.1 200") if streamed else b"503" in got[:20])
        endings.append((time.monotonic(), good))
        writer.close()

    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        tasks = [asyncio.create_task(one(index)) for index in range(trial.requests)]
        for _ in tasks:
            await asyncio.wait_for(opened.acquire(), 120)
        os.kill(server.engine().pid, signal.SIGKILL)
        killed = time.monotonic()
        while (await http.get("/health")).status_code == 200:
            await asyncio.sleep(0.01)
        red = time.monotonic() - killed
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        while (await http.get("/health")).status_code != 200:
            await asyncio.sleep(0.05)
        green = time.monotonic() - killed
    last = max(when for when, _ in endings) - killed
    good = sum(good for _, good in endings)
    report.check(f"{number}: /health red after s", red, f"<= {trial.seconds:g}", red <= trial.seconds)
    report.check(
        f"{number}: last request ended after s", last, f"<= {trial.seconds:g}", last <= trial.seconds
    )
    report.check(f"{number}: told in their dialect", good, str(trial.requests), good == trial.requests)
    report.tell(f"{number}: /health green after s", green)
