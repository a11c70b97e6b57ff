"""Ten times as many requests as can be served: those that are let in are served as if they were alone."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .report import Report, percentile
from .served import ask, info, is_idle, served, wait_for


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

    @property
    def longest(self) -> float:
        """Seconds within which whoever is let in must be answered."""
        return self.queue_wait + 2 * self.tokens * self.step + self.slack


@dataclass
class Answers:
    """What clients got."""

    statuses: Counter[str] = field(default_factory=Counter)
    served: list[float] = field(default_factory=list)  # seconds of answers with tokens
    ids: set[str] = field(default_factory=set)  # of these
    refused: list[float] = field(default_factory=list)  # seconds of refusals
    retry_after: Counter[str] = field(default_factory=Counter)
    tokens: int = 0


def run(trial: Overload) -> Report:
    """First as many clients as keep every row busy, then requests at `times` the rate."""
    with served(
        "--backend", "fake", "--model-path", f"fake:step_time={trial.step}", "--log-format", "json",
        "--max-running-requests", str(trial.rows), "--max-queue-wait", str(trial.queue_wait),
    ) as server:  # fmt: skip
        flooded = Answers()
        report = asyncio.run(_run(trial, server.url, flooded))
        _tell_what_the_server_saw(trial, report, server.text(), flooded.ids)
        return report


async def _run(trial: Overload, url: str, flooded: Answers) -> Report:
    alone, peak = Answers(), 0.0
    clients = [asyncio.create_task(_client(trial, url, alone, seed)) for seed in range(2 * trial.rows)]
    peak = await _goodput(url, trial.seconds / 4)
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    await asyncio.to_thread(wait_for, url, is_idle, 30)
    before = info(url)["stats"]["generation_tokens"]
    flood = asyncio.create_task(_flood(trial, url, flooded))
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


async def _client(trial: Overload, url: str, answers: Answers, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        await _ask(url, _body(trial, rng), answers)


async def _flood(trial: Overload, url: str, answers: Answers) -> None:
    """Requests at random times, whatever becomes of those before."""
    rng = random.Random(0)
    tasks = []
    started, due = time.monotonic(), 0.0
    while due < trial.seconds:
        await asyncio.sleep(max(0.0, started + due - time.monotonic()))
        tasks.append(asyncio.create_task(_ask(url, _body(trial, rng), answers)))
        due += rng.expovariate(trial.times * trial.capacity)
    await asyncio.gather(*tasks)


async def _ask(url: str, body: dict[str, Any], answers: Answers) -> None:
    started = time.monotonic()
    try:
        async with asyncio.timeout(60):
            answer = await ask(url, "/v1/completions", body)
    except (OSError, ValueError) as error:
        answers.statuses[type(error).__name__] += 1
        return
    seconds = time.monotonic() - started
    answers.statuses[str(answer.status)] += 1
    if answer.status == 200:
        answers.served.append(seconds)
        answers.ids.add(answer.body["id"])
        answers.tokens += answer.body["usage"]["completion_tokens"]
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
    text, most = _shares(flooded.served)
    report.check(
        "latency of the admitted, s, p50 / p99 / max", text, f"<= {trial.longest:.1f}", most <= trial.longest
    )
    text, most = _shares(flooded.refused)
    latest = trial.queue_wait + trial.slack
    report.check("latency of refusals, s, p50 / p99 / max", text, f"<= {latest:.1f}", most <= latest)
    return report


def _tell_what_the_server_saw(trial: Overload, report: Report, log: str, ids: set[str]) -> None:
    """Where the time of the admitted, `ids`, went by the server's own log, which no slow client touches."""
    found = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    visits = [each for each in found if each.get("id") in ids]
    for name, what in (
        ("queue_ms", "in the queue"),
        ("ttft_ms", "to the first token"),
        ("total_ms", "in all"),
    ):
        text, most = _shares([each[name] / 1e3 for each in visits])
        line = f"the same by the server's log, {what}"
        if name == "total_ms":
            report.check(line, text, f"<= {trial.longest:.1f}", most <= trial.longest)
        else:
            report.tell(line, text)


def _shares(seconds: list[float]) -> tuple[str, float]:
    """Median, 99th percentile and maximum as text, and the maximum."""
    shares = [percentile(seconds, share) for share in (0.5, 0.99, 1.0)]
    return " / ".join(f"{each:.3f}" for each in shares), shares[-1]
