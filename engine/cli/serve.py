"""Serve a model over HTTP: OpenAI's routes under /v1, SGLang's /generate, /health and /metrics.

Without options this is the embedded default model at http://127.0.0.1:30000. Over several hosts, give
every process the same options but --node-rank; process 0 serves, and all end together.
"""

import argparse

from ..config import EngineConfig
from ..server.options import ServerOptions
from .joints import Joints
from .options import add_options, read_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the server and of the engine."""
    add_options(parser, ServerOptions)
    add_options(parser, EngineConfig)


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Serve until told to stop; the exit status is the server's."""
    options = ServerOptions(**read_options(arguments, ServerOptions))
    config = EngineConfig(**read_options(arguments, EngineConfig))
    if config.node_rank:
        joints.follow(config)
    from ..server.serve import serve  # fastapi and uvicorn load here

    return serve(config, options, joints.find_backend(config))
