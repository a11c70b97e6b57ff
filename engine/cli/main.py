"""The command line: `radixmesh COMMAND ...`. A command's module is imported only when it is called.

Each command is a module with `add_arguments(parser)` and `run(arguments, joints) -> int`; its docstring
is what --help says of it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from ..errors import EngineDeadError, RadixMeshError
from .joints import Joints
from .options import Parser


class Command(NamedTuple):
    """A subcommand: its name, the module that has it, and one line of help."""

    name: str
    module: str
    summary: str


COMMANDS = (
    Command("serve", ".serve", "serve a model over HTTP: OpenAI's routes and SGLang's"),
    Command("chat", ".chat", "talk to a model in the terminal"),
    Command("generate", ".generate", "generate text for prompts from arguments, a file or stdin"),
    Command("bench offline", ".bench.offline", "throughput of the engine in this process"),
    Command("bench latency", ".bench.latency", "prefill and decode time of one batch"),
    Command("bench serve", ".bench.serve", "throughput and latency of a running server"),
    Command("convert", ".convert", "write a model as an Orbax checkpoint that loads onto any mesh"),
    Command("plan", ".plan", "what fits on a TPU slice that need not be here, and how fast it can be"),
    Command("doctor", ".doctor", "what this machine has, what would serve, and what is missing"),
)


def main(argv: Sequence[str], joints: Joints) -> int:
    """Run one command and return the exit status: 2 for what the user can mend, 130 for Ctrl-C."""
    try:
        return _dispatch(list(argv), joints)
    except RadixMeshError as error:
        print(f"radixmesh: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, EngineDeadError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output is gone, as in `radixmesh generate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(argv: list[str], joints: Joints) -> int:
    for command in COMMANDS:
        words = command.name.split()
        if argv[: len(words)] == words:
            return _run(command, argv[len(words) :], joints)
    _overview(joints.version, argv[:1] == ["bench"]).parse_args(argv)
    return 0


def _run(command: Command, argv: list[str], joints: Joints) -> int:
    module = import_module(command.module, __package__)
    parser = Parser(
        prog=f"radixmesh {command.name}",
        usage=f"radixmesh {command.name} [options]",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    arguments, extra = parser.parse_known_args(argv)
    if extra:
        parser.refuse(extra)
    status: int = module.run(arguments, joints)
    return status


def _overview(version: str, bench: bool) -> Parser:
    """The parser of `radixmesh` itself, or of `radixmesh bench`, which knows commands by name only."""
    shown = [each for each in COMMANDS if each.name.startswith("bench ") or not bench]
    width = max(len(each.name) for each in shown)
    lines = [f"  {each.name:{width}}  {each.summary}" for each in shown]
    parser = Parser(
        prog="radixmesh",
        usage="radixmesh [--help | --version] COMMAND ...",
        description="An LLM inference engine on continuous batching and a radix cache.",
        epilog="\n".join(["commands:", *lines, "", "radixmesh COMMAND --help tells a command's options."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"radixmesh {version}")
    names = sorted({each.name.split()[0] for each in COMMANDS})
    parser.add_argument("command", choices=names, help=argparse.SUPPRESS)
    if bench:
        kinds = [each.name.split()[1] for each in shown]
        parser.add_argument("kind", choices=kinds, help=argparse.SUPPRESS)
    return parser
