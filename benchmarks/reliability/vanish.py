"""Clients that vanish by the hundred, in the middle of their streams: their pages come back at once."""

import asyncio
import socket
import struct
from dataclasses import dataclass

from .report import Report
from .served import info, is_idle, lines, megabytes, post, served, wait_for


@dataclass(frozen=True)
class Vanish:
    """Clients that read a little of a stream that would not end, and are gone."""

    clients: int = 200
    rounds: int = 5
    rows: int = 64
    step: float = 0.01
    seconds: float = 1.0  # in which every page must be free or cached again


def run(trial: Vanish) -> Report:
    """Each round all clients vanish at the same moment; every second one with a reset."""
    with served(
        "--backend", "fake", "--model-path", f"fake:step_time={trial.step}", "--context-length", "100000",
        "--max-running-requests", str(trial.rows), "--max-total-tokens", "400000",
    ) as server:  # fmt: skip
        report = Report(f"{trial.clients} clients vanish at once, {trial.rounds} times")
        tasks, before = info(server.url)["num_tasks"], megabytes(server)
        rounds = [asyncio.run(_round(trial, server.url)) for _ in range(trial.rounds)]
        report.tell("running / waiting when they left", ", ".join(f"{a} / {b}" for a, b, _ in rounds))
        times = [seconds for _, _, seconds in rounds]
        report.check(
            "until every page was back, s",
            ", ".join(f"{each:.2f}" for each in times),
            f"<= {trial.seconds:g}",
            max(times) <= trial.seconds,
        )
        stats = info(server.url)["stats"]
        aborted, all_of_them = stats["aborted"], trial.clients * trial.rounds
        report.check("requests aborted", aborted, str(all_of_them), aborted == all_of_them)
        wrong = stats["integrity_violations"] + stats["errors"] + stats["step_failures"]
        report.check("faults found", wrong, "0", wrong == 0)
        left = info(server.url)["num_tasks"] - tasks
        report.check("tasks left in the server", left, "0", left <= 0)
        grown = [after - then for then, after in zip(before, megabytes(server), strict=True)]
        report.tell("server and engine grew by, MB", " / ".join(f"{each:.1f}" for each in grown))
    return report


async def _round(trial: Vanish, url: str) -> tuple[int, int, float]:
    """Requests that ran and waited, and the seconds until all was as before."""
    writers = await asyncio.gather(*(_open(trial, url, number) for number in range(trial.clients)))
    rows, rest = min(trial.rows, trial.clients), max(0, trial.clients - trial.rows)
    await asyncio.to_thread(
        wait_for,
        url,
        lambda each: (each["stats"]["num_running"], each["stats"]["num_waiting"]) == (rows, rest),
        30,
    )
    stats = info(url)["stats"]
    for number, writer in enumerate(writers):
        if number % 2:  # as a process that was killed with unread data: a reset instead of a farewell
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    seconds = await asyncio.to_thread(wait_for, url, is_idle, 30)
    return stats["num_running"], stats["num_waiting"], seconds


async def _open(trial: Vanish, url: str, number: int) -> asyncio.StreamWriter:
    """A stream; of those that run, some have been read for a while."""
    body = {"prompt": [number % 256] * 40, "max_tokens": 90_000, "ignore_eos": True, "stream": True}
    reader, writer = await post(url, "/v1/completions", body)
    if number < trial.rows // 2:
        async for _ in lines(reader):
            break
    return writer
