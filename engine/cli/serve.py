"""Serve a model over HTTP: OpenAI's routes under /v1, SGLang's /generate, /health and /metrics.

Without options this is the embedded default model at http://127.0.0.1:30000. Over several hosts start
the same command on each: those of a TPU slice find each other, others are told --nnodes, --node-rank and
--dist-init-addr. Process 0 serves, and all end together.
"""

import argparse
from typing import Any

from ..config import Choice, EngineConfig
from ..server.options import ServerOptions
from .joints import Joints
from .options import add_options, read_options

PORT = 20000  # of process 0 on a TPU slice, for the others; the next one too


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the server and of the engine."""
    add_options(parser, ServerOptions)
    add_options(parser, EngineConfig)


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Serve until told to stop; the exit status is the server's."""
    options = ServerOptions(**read_options(arguments, ServerOptions))
    config = EngineConfig(**_with_hosts(read_options(arguments, EngineConfig), joints))
    if config.node_rank:
        joints.follow(config)
    from ..server.serve import serve  # fastapi and uvicorn load here

    return serve(config, options, joints.find_backend(config))


def _with_hosts(given: dict[str, Any], joints: Joints) -> dict[str, Any]:
    """The options with those that tell of several hosts, where the TPU slice knows them. Prints them."""
    if {"nnodes", "node_rank", "dist_init_addr"} & given.keys() or given.get("backend") in ("torch", "fake"):
        return given
    if (hosts := joints.slice_hosts()) is None:
        return given
    from ..startup import print_choices  # the engine loads here

    count, address = len(hosts.addresses), f"{hosts.addresses[0]}:{PORT}"
    print_choices(
        [
            Choice("nnodes", count, "the TPU slice has so many hosts"),
            Choice("node_rank", hosts.rank, "this host's number in the slice"),
            Choice("dist_init_addr", address, "the slice's host 0, and a port that others seldom use"),
        ]
    )
    return {**given, "nnodes": count, "node_rank": hosts.rank, "dist_init_addr": address}
