"""Millions of tokens of good, bad, abandoned and aborted requests in a small pool: nothing is lost."""

import time
from collections import Counter
from dataclasses import dataclass

import httpx

from tests.traffic import Traffic, settled_stats

from .report import Report
from .served import info, megabytes, served


@dataclass(frozen=True)
class Soak:
    """Rounds of a thousand requests until so many tokens were generated; `seconds` end it in any case."""

    tokens: int = 3_000_000  # a third of which fills the tokenizer's memory of 10,000 words
    round: int = 1000  # requests
    most: int = 150  # new tokens of a sequence
    pool: int = 2048  # tokens
    megabytes: float = 15.0  # that each process may have grown by, between the first and the last third
    seconds: float = 3000.0


def run(trial: Soak) -> Report:
    """After each round everything is at rest, and the books are looked at."""
    with served(
        "--backend", "fake", "--context-length", "512", "--max-total-tokens", str(trial.pool),
        "--max-running-requests", "32",
    ) as server:  # fmt: skip
        report = Report(f"{trial.tokens:,} tokens in a pool of {trial.pool:,}")
        sizes: list[tuple[float, float]] = []
        tasks: list[int] = []
        outcomes: Counter[str] = Counter()
        started = time.monotonic()
        while True:
            traffic = Traffic(server.url, trial.round, 64, trial.most, first_seed=trial.round * len(sizes))
            outcomes += traffic.run()
            stats = settled_stats(server.url)  # raises unless free + cached + used = all
            sizes.append(megabytes(server))
            tasks.append(info(server.url)["num_tasks"])
            if stats["generation_tokens"] >= trial.tokens or time.monotonic() - started > trial.seconds:
                break
        report.tell("seconds, rounds", f"{time.monotonic() - started:.0f}, {len(sizes)}")
        told = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
        report.tell("requests", told)
        generated, enough = stats["generation_tokens"], stats["generation_tokens"] >= trial.tokens
        report.check("tokens generated", f"{generated:,}", f">= {trial.tokens:,}", enough)
        for name in ("preemptions", "aborted", "cached_tokens", "constrained_tokens", "forced_tokens"):
            report.check(name, f"{stats[name]:,}", "> 0", stats[name] > 0)
        report.check("free + cached + used = all, each round", "True", "True", True)
        for name in ("errors", "step_failures", "integrity_violations"):
            report.check(name, stats[name], "0", stats[name] == 0)
        flushed = httpx.post(server.url + "/flush_cache").status_code == 200
        free = settled_stats(server.url)["free_pages"]
        all_free = flushed and free == stats["num_pages"]
        report.check("pages free after a flush", free, str(stats["num_pages"]), all_free)
        report.check(
            "tasks in the server, first / last", f"{tasks[0]} / {tasks[-1]}", "equal", tasks[0] == tasks[-1]
        )
        third = max(1, len(sizes) // 3)
        for index, name in enumerate(("server", "engine")):
            tenths = [sizes[-(-len(sizes) * tenth // 10) - 1][index] for tenth in range(1, 11)]
            report.tell(f"{name}: MB at tenths", " ".join(f"{each:.0f}" for each in tenths))
            first = max(each[index] for each in sizes[:third])
            last = max(each[index] for each in sizes[-third:])
            flat = last - first <= trial.megabytes
            seen = f"{first:.1f} / {last:.1f}"
            report.check(f"{name}: MB, first / last third", seen, f"+ {trial.megabytes:g}", flat)
        traces = server.text().count("Traceback")
        report.check("tracebacks in the log", traces, "0", traces == 0)
    return report
