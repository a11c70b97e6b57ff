"""A guarded server over real sockets: clients that are slow, wrong or too talkative, and what is logged."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.running import Running

TIMEOUT = 1.0
SECRETS = ("sesame", "rosebud", "chief")


@pytest.fixture(scope="module")
def guarded(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Running:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("rosebud alice\n")
    options = {
        "api_key": ("sesame",),
        "api_key_file": str(file),
        "admin_api_key": "chief",
        "receive_timeout": TIMEOUT,
        "max_header_bytes": 2048,
        "log_format": "json",
    }
    running: Running = start(options=options)
    return running


@contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def drip(connection: socket.socket, text: bytes, seconds: float = 20) -> bytes:
    """Send a byte each 50 ms until the other side hangs up; what it said."""
    connection.settimeout(0.05)
    deadline, said = time.monotonic() + seconds, b""
    while time.monotonic() < deadline:
        try:
            connection.sendall(text[:1] or b"x")
            text = text[1:]
            if not (part := connection.recv(65536)):
                return said
            said += part
        except TimeoutError:
            continue
        except OSError:  # it hung up while we were sending
            return said
    raise AssertionError("the server let it go on")


def answer_of(raw: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of an answer as it came."""
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_headers_that_come_a_byte_at_a_time_have_an_end(guarded: Running) -> None:
    with connected(guarded) as connection:
        began = time.monotonic()
        status, error = answer_of(drip(connection, b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 100))
        assert status == 408 and "receive_timeout, 1 s" in error["message"]
        assert TIMEOUT - 0.1 < time.monotonic() - began < TIMEOUT + 5


def test_so_has_a_connection_that_says_nothing(guarded: Running) -> None:
    with connected(guarded) as connection:
        assert answer_of(connection.recv(65536))[0] == 408 and connection.recv(1) == b""


def test_so_have_headers_of_a_later_request(guarded: Running) -> None:
    with connected(guarded) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in connection.recv(65536)
        time.sleep(TIMEOUT + 0.5)  # an idle connection may wait
        assert answer_of(drip(connection, b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 100))[0] == 408


@pytest.mark.parametrize("length", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_body_that_comes_a_byte_at_a_time_has_an_end(guarded: Running, length: bytes) -> None:
    with connected(guarded) as connection:
        connection.sendall(HEAD + b"x-api-key: sesame\r\n" + length)
        chunks = b"1\r\nx\r\n" * 200 if b"chunked" in length else b""
        status, error = answer_of(drip(connection, chunks))
        assert status == 408 and error["code"] == "body_timeout"


def test_a_body_after_a_refusal_has_an_end(guarded: Running) -> None:
    with connected(guarded) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        status, error = answer_of(drip(connection, b""))
        assert status == 401 and error["code"] == "invalid_api_key"


def test_an_answer_may_take_longer_than_a_request(guarded: Running) -> None:
    """The bound is on what the client sends, not on what it waits for."""
    body = {"input_ids": [1], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    with httpx.Client(base_url=guarded.url, headers={"x-api-key": "sesame"}) as client:
        for _ in range(2):
            assert client.post("/generate", json=body).status_code == 200
            time.sleep(TIMEOUT + 0.3)


def test_too_many_headers_are_refused(guarded: Running) -> None:
    with connected(guarded) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 500)
        status, error = answer_of(connection.recv(65536))
        assert status == 431 and "too large" in error["message"]
    assert httpx.get(guarded.url + "/health", headers={"a": "b" * 3000}).status_code == 431


def test_what_is_not_http_is_told_so_in_json(guarded: Running) -> None:
    with connected(guarded) as connection:
        connection.sendall(b"hello there\r\n\r\n")
        status, error = answer_of(connection.recv(65536))
        assert status == 400 and "not valid HTTP" in error["message"]


def test_openais_client_brings_its_key(guarded: Running) -> None:
    for key in SECRETS:
        client = openai.OpenAI(base_url=guarded.url + "/v1", api_key=key, max_retries=0)
        assert client.models.list().data
    with pytest.raises(openai.AuthenticationError, match="missing or unknown"):
        openai.OpenAI(base_url=guarded.url + "/v1", api_key="other", max_retries=0).models.list()


def test_a_line_of_the_log_tells_all_but_what_was_said(guarded: Running) -> None:
    prompt = "open the door, please"
    body = {"prompt": prompt, "max_tokens": 5, "temperature": 0, "rid": "the one\n", "ignore_eos": True}
    bearer = {"authorization": "Bearer rosebud"}
    first, second = (
        httpx.post(guarded.url + "/v1/completions", json={**body, "stream": stream}, headers=bearer)
        for stream in (False, True)
    )
    assert first.status_code == second.status_code == 200
    told: list[dict[str, Any]] = []
    deadline = time.monotonic() + 20
    while len(told) < 2 and time.monotonic() < deadline:  # a line is written when its answer is out
        time.sleep(0.05)
        text = guarded.text()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line[-1] == "}"]
        told = [line for line in lines if line.get("id") == "the one\n"]
    assert len(told) == 2
    for line in told:
        assert line["message"] == "request" and line["level"] == "info" and line["key"] == "alice"
        assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/completions", 200)
        assert (line["prompt_tokens"], line["output_tokens"]) == (len(prompt), 5)
        assert line["finish"] == "length"
        assert 0 <= line["queue_ms"] <= line["ttft_ms"] <= line["total_ms"] < 20_000
    assert told[0]["cached_tokens"] == 0 < told[1]["cached_tokens"]
    assert not [line for line in lines if line.get("status") == 401 and "key" in line]
    assert not [line for line in lines if line.get("route") == "/health" and line["status"] == 200]
    assert prompt not in text
    assert not [secret for secret in SECRETS if secret in text]
