"""The commands that the documents tell people to type are ones that the command line takes."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from radixmesh.engine.cli.joints import Hosts, Joints
from radixmesh.engine.cli.main import main
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.plan import PlanOptions

DOCS = Path(__file__).parents[1] / "docs"
COMMAND = re.compile(r'^(?:  ")?radixmesh ((?:plan|serve) (?:\\\n|[^"\n#])*)', re.MULTILINE)


class Taken(Exception):
    """The command line was understood."""


def taken(arguments: list[str], hosts: Hosts | None = None) -> Any:
    def take(options: EngineConfig | PlanOptions) -> Any:
        raise Taken(options)

    def unused(*arguments: Any) -> Any:
        raise AssertionError("it should not be called")

    joints = Joints(
        version="", find_backend=take, survey=unused, convert=unused, plan=take, slice_hosts=lambda: hosts,
        follow=take,
    )  # fmt: skip
    try:
        status = main(arguments, joints)
    except Taken as end:
        return end.args[0]
    raise AssertionError(f"radixmesh {shlex.join(arguments)} ended with {status}")


@pytest.mark.parametrize("page", ["tpu.md", "planning.md", "gpu.md"])
def test_commands(page: str) -> None:
    found = [match[1].replace("\\\n", " ") for match in COMMAND.finditer((DOCS / page).read_text())]
    assert found
    for command in found:
        taken(shlex.split(command))


def test_the_pods_of_the_job_set() -> None:
    """Its command is taken on every host; probe, port and grace period are those of the command."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "tpu.md").read_text(), re.MULTILINE | re.DOTALL)
    job_set, service = yaml.safe_load_all(text)
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    program, *arguments = container["command"]
    assert program == "radixmesh"
    hosts = tuple(f"radixmesh-slice-0-{index}.radixmesh" for index in range(job["completions"]))
    chips = container["resources"]["limits"]["google.com/tpu"]
    for rank in range(job["parallelism"]):
        config = taken(arguments, Hosts(rank, hosts))
        assert (config.nnodes, config.node_rank) == (len(hosts), rank)
        assert config.tp_size * config.dp_size == len(hosts) * chips
    port = int(arguments[arguments.index("--port") + 1])
    assert container["ports"] == [{"containerPort": port}]
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": port}
    assert service["spec"]["ports"][0]["targetPort"] == port
    assert service["spec"]["selector"]["jobset.sigs.k8s.io/jobset-name"] == job_set["metadata"]["name"]
    assert pod["terminationGracePeriodSeconds"] > 30  # the default of --drain-timeout
