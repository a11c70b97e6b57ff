"""kill -9 of the engine process under load, or its hanging: who waits hears of it, and soon the server serves
again."""

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
# where the end of a text cannot be ignored: the fake, greedy, answers this for more than 1,500 tokens
QUESTION = "Count from 1 to 100000."


SILENCE = 1.5  # seconds that are not counted, as they are usual


@dataclass(frozen=True)
class Dialect:
    """A request that does not end by itself, and how its route tells that the engine died."""

    body: dict[str, Any]
    whole: bytes  # in an answer of status 503
    event: bytes  # the last of a stream


_MESSAGES = [{"role": "user", "content": QUESTION}]
_OPENAI = b'"code":"engine_dead"'
_OLLAMA = b'{"error":"the engine is gone'
_SAMPLING = {"max_new_tokens": ENDLESS, "ignore_eos": True}
_OPTIONS = {"temperature": 0, "num_predict": ENDLESS}
_OVERLOADED = b'{"type":"error","error":{"type":"overloaded_error"'
DIALECTS = {
    "/v1/completions": Dialect(
        {"prompt": QUESTION, "max_tokens": ENDLESS, "ignore_eos": True}, _OPENAI, _OPENAI
    ),
    "/v1/chat/completions": Dialect(
        {"messages": _MESSAGES, "max_tokens": ENDLESS, "ignore_eos": True}, _OPENAI, _OPENAI
    ),
    "/v1/responses": Dialect(
        {"input": QUESTION, "max_output_tokens": ENDLESS, "ignore_eos": True},
        _OPENAI,
        b"event: response.failed\ndata: ",
    ),
    "/generate": Dialect({"text": QUESTION, "sampling_params": _SAMPLING}, _OPENAI, _OPENAI),
    "/v1/messages": Dialect(
        {"messages": _MESSAGES, "max_tokens": ENDLESS, "temperature": 0},
        _OVERLOADED,
        b"event: error\ndata: " + _OVERLOADED,
    ),
    "/api/chat": Dialect({"messages": _MESSAGES, "options": _OPTIONS}, _OLLAMA, b"\n" + _OLLAMA),
    "/api/generate": Dialect({"prompt": QUESTION, "options": _OPTIONS}, _OLLAMA, b"\n" + _OLLAMA),
}


@dataclass(frozen=True)
class Kill:
    """Open requests of every dialect, the first half of them streams; `model` is an embedded one, or fake."""

    model: str = "fake"
    requests: int = 84
    kills: int = 3
    seconds: float = 2.0  # in which every open request must have ended
    load_time: float = 1.0  # seconds that the fake takes to start
    hangs: int = 1  # times that the engine is stopped, after it was killed
    heartbeat_timeout: float = 5.0  # seconds until an engine that hangs is killed by the server


def run(trial: Kill) -> Report:
    """Kill, look, wait until it serves again, and once more."""
    model = ["--model-path", trial.model]
    if trial.model == "fake":
        path = f"fake:step_time=0.01,load_time={trial.load_time}"
        model = ["--backend", "fake", "--model-path", path, "--context-length", "200000"]
        model += ["--max-total-tokens", "1000000"]
    patience = ["--heartbeat-timeout", str(trial.heartbeat_timeout)]
    with served(*model, "--restart-engine", *patience) as server:
        report = Report(f"the engine of {trial.model} is killed {trial.kills} times, and hangs {trial.hangs}")
        first = _say(server.url)
        for number in range(trial.kills + trial.hangs):
            hangs = number >= trial.kills
            name = f"hang {number - trial.kills + 1}" if hangs else f"kill {number + 1}"
            asyncio.run(_strike(trial, server, report, name, hangs))
            same = _say(server.url) == first
            report.check(f"{name}: answers as before", same, "True", same)
        counted = f"radixmesh:engine_restarts_total {trial.kills + trial.hangs}.0"
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


async def _strike(trial: Kill, server: Running, report: Report, name: str, hangs: bool) -> None:
    """Open all requests, kill or stop the engine, and tell what each of them heard and when."""
    endings: list[tuple[float, str, bool]] = []  # when it ended, its path, and whether as its dialect says
    opened = asyncio.Semaphore(0)

    async def one(index: int) -> None:
        path, streamed = list(DIALECTS)[index % len(DIALECTS)], index < trial.requests // 2
        dialect = DIALECTS[path]
        reader, writer = await post(server.url, path, {**dialect.body, "stream": streamed})
        head = await reader.readuntil(b"}") if streamed else b""  # it runs; the others may wait for a place
        opened.release()
        got = head + await reader.read()
        if streamed:
            good = got.startswith(b"HTTP/1.1 200") and dialect.event in got[-4000:]
        else:
            good = got.startswith(b"HTTP/1.1 503") and dialect.whole in got
        endings.append((time.monotonic(), path, good))
        writer.close()

    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        tasks = [asyncio.create_task(one(index)) for index in range(trial.requests)]
        for _ in tasks:
            await asyncio.wait_for(opened.acquire(), 120)
        os.kill(server.engine().pid, signal.SIGSTOP if hangs else signal.SIGKILL)
        killed = time.monotonic()
        while (await http.get("/health")).status_code == 200:
            await asyncio.sleep(0.01)
        red = time.monotonic() - killed
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        while (await http.get("/health")).status_code != 200:
            await asyncio.sleep(0.05)
        green = time.monotonic() - killed
    last = max(when for when, _, _ in endings) - killed
    bad = sorted({path for _, path, good in endings if not good})
    told = sum(good for _, _, good in endings)
    most = trial.seconds + (trial.heartbeat_timeout + SILENCE if hangs else 0)
    report.check(f"{name}: /health red after s", red, f"<= {most:g}", red <= most)
    report.check(f"{name}: last request ended after s", last, f"<= {most:g}", last <= most)
    report.check(f"{name}: told in their dialect", " ".join([str(told), *bad]), str(trial.requests), not bad)
    report.tell(f"{name}: /health green after s", green)
