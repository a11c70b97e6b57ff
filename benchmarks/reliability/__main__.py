"""Show that the server stays up: `python -m benchmarks.reliability overload`, or another trial, or all.

Everything runs on this machine, over 127.0.0.1. The exit status is 1 when a property does not hold.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from . import kill, overload, schema, slow_reader, soak, vanish

TRIALS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "overload": (overload.Overload, overload.run),
    "kill": (kill.Kill, kill.run),
    "schema": (schema.Schema, schema.run),
    "soak": (soak.Soak, soak.run),
    "vanish": (vanish.Vanish, vanish.run),
    "slow-reader": (slow_reader.SlowReader, slow_reader.run),
}


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    commands = parser.add_subparsers(dest="trial", required=True)
    for name, (kind, _) in TRIALS.items():
        command = commands.add_parser(name, help=(kind.__doc__ or "").split("\n")[0])
        for each in fields(kind):
            flag = "--" + each.name.replace("_", "-")
            command.add_argument(
                flag, type=type(each.default), default=each.default, help="default: %(default)s"
            )
    commands.add_parser("all", help="every trial, as it is by default")
    given = vars(parser.parse_args())
    name = given.pop("trial")
    reports = []
    for trial in TRIALS if name == "all" else (name,):
        kind, run = TRIALS[trial]
        reports.append(run(kind(**given)))
        print(reports[-1], end="\n\n", flush=True)
    return 0 if all(report.holds for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
