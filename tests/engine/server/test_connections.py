"""How many connections a server takes, and connections by TLS."""

import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from radixmesh.engine.errors import ConfigError
from radixmesh.engine.server.connection import connection_class
from radixmesh.engine.server.options import ServerOptions
from tests.running import Running

BODY = {"input_ids": [1], "sampling_params": {"max_new_tokens": 2, "temperature": 0}}


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_connections_beyond_the_bound_hear_when_to_come_again(start: Any) -> None:
    server = start(options={"max_connections": 2})
    with httpx.Client(base_url=server.url) as client, connect(server) as other:
        assert client.get("/health").status_code == 200
        other.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in other.recv(65536)
        for answer in (httpx.get(server.url + "/health"), httpx.post(server.url + "/generate", json=BODY)):
            error = answer.json()["error"]
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            assert error["code"] == "too_many_connections" and "2 connections" in error["message"]
        with connect(server) as silent:  # it hears so without a word
            began = time.monotonic()
            assert b" 503 " in silent.recv(65536) and silent.recv(1) == b""
            assert time.monotonic() - began < 10
        assert client.post("/generate", json=BODY).status_code == 200  # who is in goes on
    deadline = time.monotonic() + 20
    status = 503
    while status == 503 and time.monotonic() < deadline:  # until both have left
        status = httpx.get(server.url + "/health").status_code
    assert status == 200


def test_each_server_counts_its_own() -> None:
    assert connection_class(1.0, 1) is not connection_class(1.0, 1)
    with pytest.raises(ConfigError, match="max_connections is 0"):
        ServerOptions(max_connections=0)


def make_certificate(folder: Path, name: str, *options: str) -> tuple[str, str]:
    """Files of a certificate for localhost that signed itself, and of its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the command openssl, which makes the certificate, is not here")
    certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *options],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(certificate), str(key)


def test_https_and_grpc_over_tls(start: Any, tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc")
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from tests.engine.grpc.conftest import grpc_address

    certificate, key = make_certificate(tmp_path, "mine", "-nodes")
    server = start(
        options={"ssl_certfile": certificate, "ssl_keyfile": key, "grpc_port": 0, "max_connections": 5}
    )
    assert server.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=certificate)
    with httpx.Client(base_url=server.url, verify=trusting) as client:
        assert client.get("/health").status_code == 200
        body = {**BODY, "sampling_params": {"max_new_tokens": 50, "ignore_eos": True, "temperature": 0}}
        lines = client.post("/generate", json={**body, "stream": True}).text.splitlines()
        assert lines[-2] == "data: [DONE]" and len(lines) >= 4
    with pytest.raises(httpx.ConnectError):  # nobody vouches for it
        httpx.get(server.url + "/health")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(server.url.replace("https", "http") + "/health")

    root = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
    with grpc.secure_channel(grpc_address(server), root) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_what_cannot_be_used_is_told_before_the_model_loads(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "mine", "-nodes")
    assert ServerOptions(ssl_certfile=certificate, ssl_keyfile=key).ssl_keyfile == key
    for alone in ({"ssl_certfile": certificate}, {"ssl_keyfile": key}):
        with pytest.raises(ConfigError, match=f"{next(iter(alone))} is given alone"):
            ServerOptions(**alone)  # type: ignore[arg-type]
    _, others = make_certificate(tmp_path, "others", "-nodes")
    _, locked = make_certificate(tmp_path, "locked", "-passout", "pass:sesame")
    for wrong in (others, locked, certificate, str(tmp_path / "none.pem")):
        with pytest.raises(ConfigError, match="cannot be used: .*; accepted are PEM files"):
            ServerOptions(ssl_certfile=certificate, ssl_keyfile=wrong)
