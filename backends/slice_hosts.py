"""The hosts of a TPU slice: which there are, and which of them this is.

The machines say it themselves: on GKE in the environment that libtpu reads, on a TPU VM through Google's
metadata server. `jax.distributed` could read the same, but the processes of one engine meet before they
start jax (`jax/crew.py`).
"""

import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from ..engine.cli.joints import Hosts
from ..engine.errors import ConfigError
from .hardware import tpu_chips_here

METADATA = "http://metadata.google.internal"
_PATIENCE = 5.0  # seconds; the metadata server is on the same machine


def slice_hosts(
    root: Path = Path("/"), env: Mapping[str, str] = os.environ, metadata: str = METADATA
) -> Hosts | None:
    """The hosts of the TPU slice that this machine belongs to; None for a single host, or without a TPU.

    `root` stands for the file system's root and `metadata` for Google's server (tests give their own).
    Raises ConfigError for slices that are joined over the data centre's network.
    """
    if env.get("JAX_PLATFORMS", "").strip().lower() == "cpu" or not tpu_chips_here(root):
        return None
    if (slices := env.get("MEGASCALE_NUM_SLICES", "1")) != "1":
        raise ConfigError(f"MEGASCALE_NUM_SLICES is {slices}; accepted is 1: an engine runs on one TPU slice")
    if names := env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES"):
        rank, workers = env.get("TPU_WORKER_ID"), names.split(",")
    else:
        rank = _attribute(metadata, "agent-worker-number")
        workers = (_attribute(metadata, "worker-network-endpoints") or "").split(",")
    if rank is None or len(workers) < 2:
        return None
    return Hosts(int(rank), tuple(_address(each) for each in workers))


def _address(worker: str) -> str:
    """The host of "host", of "host:port", or of "name:number:host", which older machines write."""
    parts = worker.strip().split(":")
    return parts[2] if len(parts) == 3 else parts[0]


def _attribute(metadata: str, name: str) -> str | None:
    """An attribute of this machine, None where nobody has set it or knows."""
    request = urllib.request.Request(
        f"{metadata}/computeMetadata/v1/instance/attributes/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            return str(answer.read().decode()).strip()
    except (urllib.error.URLError, TimeoutError):
        return None
