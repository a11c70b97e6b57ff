"""schemathesis invents requests from the OpenAPI document: none is answered with 5xx, and none hangs."""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx

from .report import Report
from .served import is_idle, served, wait_for


@dataclass(frozen=True)
class Schema:
    """How much is tried for each operation, and how long one answer may take."""

    examples: int = 100
    phases: str = "examples,coverage,fuzzing"
    timeout: float = 20.0
    seed: int = 1
    seconds: int = 1500  # for all


def run(trial: Schema) -> Report:
    """Requests as the document allows them, at the edges of it, and against it."""
    with served("--backend", "fake", "--context-length", "512") as server:
        report = Report(f"schemathesis, {trial.examples} examples for each operation")
        document = httpx.get(server.url + "/openapi.json").json()
        operations = sum(len(methods) for methods in document["paths"].values())
        report.tell("operations in the document", operations)
        with tempfile.TemporaryDirectory() as folder:
            status, said, answers = _attack(trial, server.url, Path(folder))
        found = re.findall(r"\d+ (?:generated|passed|failures?|errors?)[^\n]*", said)
        report.tell("schemathesis", "; ".join(dict.fromkeys(found)) or "nothing")
        told = ", ".join(f"{count} x {code}" for code, count in sorted(answers.items()))
        report.tell("answers", told)
        bad = sum(count for code, count in answers.items() if code >= 500)
        report.check("answers of 5xx", bad, "0", bad == 0)
        report.check("status of schemathesis (failures, time-outs)", status, "0", status == 0)
        idle = wait_for(server.url, is_idle, 20)
        report.check("nothing left, after s", idle, "<= 20", idle <= 20)
        traces = server.text().count("Traceback")
        report.check("tracebacks in the log", traces, "0", traces == 0)
        if not report.holds:
            print(said[-6000:], server.text()[-3000:], sep="\n", file=sys.stderr)
    return report


def _attack(trial: Schema, url: str, folder: Path) -> tuple[int, str, Counter[int]]:
    """Its exit status, what it printed, and how often each status was answered."""
    har = folder / "calls.har"
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            program, "run", f"{url}/openapi.json", "--url", url, "--checks", "not_a_server_error",
            "--phases", trial.phases, "--max-examples", str(trial.examples),
            "--seed", str(trial.seed), "--request-timeout", str(trial.timeout),
            "--generation-database", "none", "--suppress-health-check", "all", "--continue-on-failure",
            "--report", "har", "--report-har-path", har, "--no-color",
        ],
        cwd=folder, capture_output=True, text=True, timeout=trial.seconds,
    )  # fmt: skip
    entries = json.loads(har.read_text())["log"]["entries"] if har.is_file() else []
    answers = Counter(int(entry["response"]["status"]) for entry in entries)
    return done.returncode, done.stdout + done.stderr, answers
