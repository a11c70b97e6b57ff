"""The hosts of a TPU slice, on made-up machines beside a made-up metadata server."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from radixmesh.backends.slice_hosts import slice_hosts
from radixmesh.engine.cli.joints import Hosts
from radixmesh.engine.errors import ConfigError

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with one TPU v6e chip."""
    pci = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
    pci.mkdir(parents=True)
    (pci / "vendor").write_text("0x1ae0\n")
    (pci / "device").write_text("0x006f\n")
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/0").touch()
    return tmp_path


@contextmanager
def metadata_server(attributes: Mapping[str, str]) -> Iterator[str]:
    """Answers as Google's does: the attributes of an instance, to those who name its flavour."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            folder, _, name = self.path.rpartition("/")
            known = folder == "/computeMetadata/v1/instance/attributes" and name in attributes
            self.send_response(200 if known and self.headers["Metadata-Flavor"] == "Google" else 404)
            self.end_headers()
            self.wfile.write(attributes.get(name, "not found").encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "endpoints", ["10.0.0.7,10.0.0.5,10.0.0.6", "a:0:10.0.0.7,b:1:10.0.0.5,unknown:unknown:10.0.0.6"]
)
def test_a_tpu_vm_asks_the_metadata_server(machine: Path, endpoints: str) -> None:
    told = {"agent-worker-number": "2", "worker-network-endpoints": endpoints}
    with metadata_server(told) as metadata:
        assert slice_hosts(machine, {}, metadata) == Hosts(2, ("10.0.0.7", "10.0.0.5", "10.0.0.6"))


@pytest.mark.parametrize(
    "env",
    [
        {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "w-0.svc,w-1.svc"},
        {"TPU_WORKER_ID": "1", "TPU_PROCESS_ADDRESSES": "w-0.svc:8471,w-1.svc:8471"},
    ],
)
def test_gke_says_it_in_the_environment(machine: Path, env: dict[str, str]) -> None:
    assert slice_hosts(machine, env, NOWHERE) == Hosts(1, ("w-0.svc", "w-1.svc"))


def test_one_host_is_no_slice_of_several(machine: Path) -> None:
    with metadata_server({"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.7"}) as metadata:
        assert slice_hosts(machine, {}, metadata) is None
    with metadata_server({}) as metadata:  # a machine that Google's TPU service did not make
        assert slice_hosts(machine, {}, metadata) is None
    assert slice_hosts(machine, {}, NOWHERE) is None
    assert slice_hosts(machine, {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, NOWHERE) is None


def test_without_a_tpu_nobody_is_asked(tmp_path: Path, machine: Path) -> None:
    told = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "w-0,w-1"}
    assert slice_hosts(tmp_path / "none", told) is None
    assert slice_hosts(machine, {**told, "JAX_PLATFORMS": "cpu"}) is None


def test_slices_joined_over_the_data_centre_are_refused(machine: Path) -> None:
    with pytest.raises(ConfigError, match="MEGASCALE_NUM_SLICES is 2; accepted is 1"):
        slice_hosts(machine, {"MEGASCALE_NUM_SLICES": "2"}, NOWHERE)
