"""Ten times as many requests as can be served: those that are let in are served as if they were alone."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from .report import Report, percentile
from .served import info, is_idle, served, wait_for


@dataclass(frozen=True)
class Overload:
    """A pretended device of `rows` rows and `step` seconds a step; requests of 1 to 2 * `tokens` tokens."""

    seconds: float = 120.0
    times: float = 10.0
    rows: int = 8
    step: float = 0.05
    tokens: int = 16
    queue_wait: float = 4.0
    slack: float = 2.0  # seconds that a busy machine may add to a latency
    tolerance: float = 0.05  # share of the peak that goodput may lose

    @property
    def capacity(self) -> float:
        """Requests a second that the rows can take."""
        return self.rows / ((self.tokens + 0.5) * self.step)


@dataclass
class Answers:
    """What clients got."""

    statuses: Counter[str] = field(default_factory=Counter)
    served: list[float] = field(default_factory=list)  # seconds of answers with tokens
    refused: list[float] = field(default_factory=list)  # seconds of refusals
    retry_after: Counter[str] = field(default_factory=Counter)
    tokens: int = 0


def run(trial: Overload) -> Report:
    """First as many clients as keep every row busy, then requests at `times` the rate."""
    with served(
        "--backend", "fake", "--model-path", f"fake:step_time={trial.step}",
        "--max-running-requests", str(trial.rows), "--max-queue-wait", str(trial.queue_wait),
    ) as server:  # fmt: skip
        return asyncio.run(_run(trial, server.url))


async def _run(trial: Overload, url: str) -> Report:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        alone, peak = Answers(), 0.0
        clients = [asyncio.create_task(_client(trial, client, alone, seed)) for seed in range(2 * trial.rows)]
        peak = await _goodput(url, trial.seconds / 4)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await asyncio.to_thread(wait_for, url, is_idle, 30)
        before = info(url)["stats"]["generation_tokens"]
        flooded = Answers()
        flood = asyncio.create_task(_flood(trial, client, flooded))
        goodput = await _goodput(url, trial.seconds)
        await flood
        await asyncio.to_thread(wait_for, url, is_idle, 30)
        stats = info(url)["stats"]
    return _report(trial, alone, peak, flooded, goodput, stats["generation_tokens"] - before)


async def _goodput(url: str, seconds: float) -> float:
    """Tokens a second by the server's counter, without the first tenth of the time."""
    await asyncio.sleep(seconds / 10)
    start, before = time.monotonic(), (await asyncio.to_thread(info, url))["stats"]["generation_tokens"]
    await asyncio.sleep(seconds * 0.9)
    after = (await asyncio.to_thread(info, url))["stats"]["generation_tokens"]
    return float((after - before) / (time.monotonic() - start))


def _body(trial: Overload, rng: random.Random) -> dict[str, Any]:
    prompt = [rng.randrange(256) for _ in range(16)]
    tokens = rng.randint(1, 2 * trial.tokens)
    return {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


async def _client(trial: Overload, client: httpx.AsyncClient, answers: Answers, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        await _ask(client, _body(trial, rng), answers)


async def _flood(trial: Overload, client: httpx.AsyncClient, answers: Answers) -> None:
    """Requests at random times, whatever becomes of those before."""
    rng = random.Random(0)
    tasks = []
    started, due = time.monotonic(), 0.0
    while due < trial.seconds:
        await asyncio.sleep(max(0.0, started + due - time.monotonic()))
        tasks.append(asyncio.create_task(_ask(client, _body(trial, rng), answers)))
        due += rng.expovariate(trial.times * trial.capacity)
    await asyncio.gather(*tasks)


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], answers: Answers) -> None:
    started = time.monotonic()
    try:
        answer = await client.post("/v1/completions", json=body)
    except httpx.HTTPError as error:
        answers.statuses[type(error).__name__] += 1
        return
    seconds = time.monotonic() - started
    answers.statuses[str(answer.status_code)] += 1
    if answer.status_code == 200:
        answers.served.append(seconds)
        answers.tokens += answer.json()["usage"]["completion_tokens"]
    else:
        answers.refused.append(seconds)
        answers.retry_after[answer.headers.get("retry-after", "none")] += 1


def _report(
    trial: Overload, alone: Answers, peak: float, flooded: Answers, goodput: float, generated: int
) -> Report:
    report = Report(f"{trial.times:g}x overload for {trial.seconds:g} s")
    count = sum(flooded.statuses.values())
    report.tell("requests offered, a second", count / trial.seconds)
    report.tell("that can be served, a second", trial.capacity)
    report.tell("peak, tokens a second", peak)
    kept = 1 - trial.tolerance
    report.check("goodput, tokens a second", goodput, f">= {kept:.0%} of peak", goodput >= kept * peak)
    excess = set(flooded.statuses) - {"200"}
    told = ", ".join(f"{count} x {status}" for status, count in sorted(flooded.statuses.items()))
    report.check("answers", told, "200, 429, 503", bool(excess) and excess <= {"429", "503"})
    retry = flooded.retry_after
    after = ", ".join(f"{count} x {each} s" for each, count in sorted(retry.items()))
    report.check("Retry-After", after, "always", bool(retry) and "none" not in retry)
    report.check("tokens generated for nobody", generated - flooded.tokens, "0", generated == flooded.tokens)
    report.tell(
        "latency alone, s, p50 / max", f"{percentile(alone.served, 0.5):.2f} / {max(alone.served):.2f}"
    )
    longest = trial.queue_wait + 2 * trial.tokens * trial.step + trial.slack
    shares = [percentile(flooded.served, share) for share in (0.5, 0.99, 1.0)]
    text = " / ".join(f"{each:.2f}" for each in shares)
    report.check(
        "latency of the admitted, s, p50 / p99 / max", text, f"<= {longest:.1f}", shares[-1] <= longest
    )
    shares = [percentile(flooded.refused, share) for share in (0.5, 0.99, 1.0)]
    text = " / ".join(f"{each:.3f}" for each in shares)
    latest = trial.queue_wait + trial.slack
    report.check("latency of refusals, s, p50 / p99 / max", text, f"<= {latest:.1f}", shares[-1] <= latest)
    return report
