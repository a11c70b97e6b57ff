"""Clients that stop reading: others do not feel it, memory stays bounded, in the end they are hung up on."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .report import Report, percentile
from .served import info, is_idle, lines, megabytes, post, served, wait_for

MARGIN = 10.0  # seconds; the kernel looks after a stalled connection with pauses that grow


@dataclass(frozen=True)
class SlowReader:
    """Streams that are read beside streams that are not; the pretended device has room for all."""

    readers: int = 8
    stalled: int = 50
    step: float = 0.01
    seconds: float = 30.0  # of measuring, without and with those who do not read
    stall_timeout: float = 30.0
    megabytes: float = 100.0  # that the server may grow by meanwhile
    tolerance: float = 0.1  # share of their tokens that the readers may lose


@dataclass
class Seen:
    """What the readers got."""

    tokens: int = 0
    gaps: list[float] = field(default_factory=list)


def run(trial: SlowReader) -> Report:
    """Measure readers alone, then beside clients that take nothing, then wait for these to be ended."""
    with served(
        "--backend", "fake", "--model-path", f"fake:step_time={trial.step}", "--context-length", "1000000",
        "--max-total-tokens", "1000000", "--stall-timeout", str(trial.stall_timeout),
    ) as server:  # fmt: skip
        report = Report(f"{trial.stalled} of {trial.stalled + trial.readers} clients stop reading")
        alone = asyncio.run(_read(trial, server.url))
        before = megabytes(server)
        beside, grown, seconds = asyncio.run(
            _beside(trial, server.url, lambda: megabytes(server)[0] - before[0])
        )
        report.tell("tokens read, alone", alone.tokens)
        enough = beside.tokens >= (1 - trial.tolerance) * alone.tokens
        report.check(
            "tokens read, beside those", beside.tokens, f">= {1 - trial.tolerance:.0%} of these", enough
        )
        for name, seen in (("alone", alone), ("beside those", beside)):
            gaps = " / ".join(f"{percentile(seen.gaps, share) * 1000:.1f}" for share in (0.5, 0.99))
            report.tell(f"gap between tokens, {name}, ms, p50 / p99", gaps)
        report.check("server grew by, MB", grown, f"<= {trial.megabytes:g}", grown <= trial.megabytes)
        bound = trial.stall_timeout + MARGIN
        report.check("then until all were hung up on, s", seconds, f"<= {bound:g}", seconds <= bound)
        aborted = info(server.url)["stats"]["aborted"]
        report.tell("requests aborted", aborted)
    return report


async def _beside(trial: SlowReader, url: str, growth: Callable[[], float]) -> tuple[Seen, float, float]:
    """What readers saw beside clients that read nothing, the server's growth at the end, and the seconds from
    then until nothing was open."""
    body = {"input_ids": [1, 2, 3], "stream": True}
    body["sampling_params"] = {"max_new_tokens": 900_000, "ignore_eos": True, "temperature": 0}
    # /generate tells the text so far in every event: the most that can pile up
    stalled = await asyncio.gather(*(post(url, "/generate", body) for _ in range(trial.stalled)))
    seen = await _read(trial, url)
    grown = growth()
    seconds = await asyncio.to_thread(wait_for, url, is_idle, trial.stall_timeout + MARGIN)
    for _, writer in stalled:  # open and unread until now
        writer.transport.abort()
    return seen, grown, seconds


async def _read(trial: SlowReader, url: str) -> Seen:
    """Streams that are read as they come, for `seconds`."""
    seen = Seen()

    async def one(number: int) -> None:
        body = {"prompt": [number] * 4, "max_tokens": 900_000, "ignore_eos": True, "stream": True}
        reader, writer = await post(url, "/v1/completions", body)
        last = 0.0
        async for line in lines(reader):
            now = time.monotonic()
            if line.startswith(b"data: "):
                seen.tokens += 1
                if last:
                    seen.gaps.append(now - last)
                last = now
            if now > end:
                break
        writer.transport.abort()

    end = time.monotonic() + trial.seconds
    await asyncio.gather(*(one(number) for number in range(trial.readers)))
    return seen
