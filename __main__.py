"""The `radixmesh` command, also `python -m radixmesh`: the one place that joins engine and backends."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__
from .engine.cli.joints import Conversion, Hosts, Joints, Machine
from .engine.cli.main import main as run_command
from .engine.config import EngineConfig
from .engine.plan import Plan, PlanOptions
from .engine.runner import Backend


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's own, and return the exit status."""
    joints = Joints(
        version=__version__,
        find_backend=find_backend,
        survey=survey,
        convert=convert,
        plan=plan,
        slice_hosts=slice_hosts,
        follow=follow,
    )
    return run_command(sys.argv[1:] if argv is None else argv, joints)


def find_backend(config: EngineConfig) -> Backend:
    """The backend that `config` asks for; no framework is imported before it is needed."""
    from .backends.registry import backend_for

    return backend_for(config)


def survey(config: EngineConfig) -> Machine:
    """What this machine has and what would serve `config`, for `radixmesh doctor`."""
    from .backends.survey import survey as survey_machine

    return survey_machine(config)


def convert(config: EngineConfig, output: Path) -> Conversion:
    """Write the model that `config` names as an Orbax checkpoint, for `radixmesh convert`."""
    from .backends.convert import convert as convert_model

    return convert_model(config, output)


def plan(options: PlanOptions) -> Plan:
    """A model on a TPU slice that need not be here, for `radixmesh plan`."""
    from .backends.planner import make_plan

    return make_plan(options)


def slice_hosts() -> Hosts | None:
    """The hosts of the TPU slice that this machine is one of several of, for `radixmesh serve`."""
    from .backends.slice_hosts import slice_hosts as find_hosts

    return find_hosts()


def follow(config: EngineConfig) -> NoReturn:
    """Run a process of several hosts that is not the first, for `radixmesh serve --node-rank`."""
    from .backends.follow import follow as follow_leader

    follow_leader(config)


if __name__ == "__main__":
    sys.exit(main())
