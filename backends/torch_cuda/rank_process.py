"""The main function of another rank's process: run every step that rank 0 runs, until it hangs up."""

import os
import sys
from multiprocessing.connection import Connection
from typing import cast

from .ranked_runner import Assignment, join
from .start import build_rank


def main() -> None:
    """The connection to rank 0 is the file descriptor in argv[1]."""
    connection = Connection(int(sys.argv[1]))
    assignment = cast(Assignment, connection.recv())
    join(assignment.ranks, assignment.on_gpu, assignment.meeting)
    runner = build_rank(assignment.config, assignment.info, assignment.ranks, assignment.on_gpu)
    while True:
        try:
            message = connection.recv()
        except EOFError:
            os._exit(0)  # at once: a collective may be waiting for rank 0, which is gone
        if message == "warmup":
            runner.warmup()
        else:
            runner.forward(message)
