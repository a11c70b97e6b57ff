"""The main function of another rank's process: run every step that rank 0 runs, until it hangs up."""

import os
import socket
import sys

from .rank_wire import Assignment, Constrain, Step, Wire
from .ranked_runner import join
from .start import build_rank


def main() -> None:
    """The socket to rank 0 is the file descriptor in argv[1]."""
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    assignment = wire.receive()
    assert isinstance(assignment, Assignment)
    join(assignment.ranks, assignment.on_gpu, assignment.meeting)
    runner = build_rank(assignment.config, assignment.info, assignment.ranks, assignment.on_gpu)
    while True:
        try:
            message = wire.receive()
        except EOFError:
            os._exit(0)  # at once: a collective may be waiting for rank 0, which is gone
        match message:
            case Step():
                launched = runner.forward(message.batches)
            case Constrain():
                launched.constrain([message.masks])
            case _:
                runner.warmup()
