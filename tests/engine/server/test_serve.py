"""How a server starts and ends, and what it does when time, room or the engine runs out."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

ENDLESS = {"temperature": 0, "max_new_tokens": 90_000, "ignore_eos": True}
ROOMY = {"context_length": 100_000, "max_total_tokens": 400_000}


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def body(tokens: int = 90_000, **more: Any) -> dict[str, Any]:
    return {"input_ids": [1, 2, 3], "sampling_params": {**ENDLESS, "max_new_tokens": tokens}, **more}


class Stream(threading.Thread):
    """A streaming /generate request in a thread; `events` grows as they come."""

    def __init__(self, url: str, tokens: int = 90_000) -> None:
        super().__init__(daemon=True)
        self.url, self.tokens = url, tokens
        self.events: list[Any] = []
        self.lines: list[str] = []
        self.start()
        until(lambda: self.events)

    def run(self) -> None:
        with httpx.stream(
            "POST", self.url + "/generate", json=body(self.tokens, stream=True), timeout=60
        ) as r:
            for line in r.iter_lines():
                if line:
                    self.lines.append(line)
                    if line != "data: [DONE]":
                        self.events.append(json.loads(line.removeprefix("data: ")))

    def last(self) -> Any:
        """The last event, once the stream is whole."""
        self.join(30)
        assert not self.is_alive() and self.lines[-1] == "data: [DONE]"
        return self.events[-1]


def post_in_thread(url: str, data: Any, answers: list[httpx.Response]) -> threading.Thread:
    """Post to /generate; the answer is added to `answers`."""
    thread = threading.Thread(
        target=lambda: answers.append(httpx.post(url + "/generate", json=data, timeout=60)), daemon=True
    )
    thread.start()
    return thread


def test_sigterm_lets_running_requests_finish(start: Any) -> None:
    server = start(ROOMY)
    stream = Stream(server.url, tokens=3000)
    server.process.send_signal(signal.SIGTERM)
    with httpx.Client(base_url=server.url) as http:
        health = until(lambda: (r := http.get("/health")).status_code == 503 and r)
        assert "draining" in health.json()["error"]["message"]
        refused = http.post("/generate", json=body(1))
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "not_serving"
        assert int(refused.headers["retry-after"]) > 0
        assert stream.is_alive()  # all this while it ran
    assert stream.last()["meta_info"]["finish_reason"] == {"type": "length", "length": 3000}
    assert server.process.wait(20) == 0


def test_sigint_on_an_idle_server_ends_it(start: Any) -> None:
    server = start()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.text()


def test_drain_has_an_end(start: Any) -> None:
    server = start(ROOMY, {"drain_timeout": 0.5})
    stream = Stream(server.url)
    server.process.send_signal(signal.SIGTERM)
    assert stream.last()["meta_info"]["finish_reason"]["type"] == "abort"
    assert server.process.wait(20) == 0


def test_second_signal_does_not_wait(start: Any) -> None:
    server = start(ROOMY, {"drain_timeout": 1000})
    stream = Stream(server.url)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in server.text())
    server.process.send_signal(signal.SIGTERM)
    assert stream.last()["meta_info"]["finish_reason"]["type"] == "abort"
    assert server.process.wait(20) == 0


def test_engine_death(start: Any) -> None:
    server = start(ROOMY)
    stream = Stream(server.url)
    answers: list[httpx.Response] = []
    waiting = threading.Thread(
        target=lambda: answers.append(httpx.post(server.url + "/generate", json=body(), timeout=60)),
        daemon=True,
    )
    waiting.start()
    until(lambda: server.stats()["num_running"] == 2)
    os.kill(server.engine().pid, signal.SIGKILL)
    with httpx.Client(base_url=server.url) as http:
        health = until(lambda: (r := http.get("/health")).status_code == 503 and r)
        assert "engine" in health.json()["error"]["message"]
        assert http.post("/generate", json=body(1)).json()["error"]["code"] == "engine_dead"
    assert stream.last()["error"]["code"] == "engine_dead"
    waiting.join(10)
    assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "engine_dead"
    assert server.process.wait(20) == 1
    assert "engine process" in server.text() and "Traceback" not in server.text()


def test_a_restarted_engine_serves_again(start: Any) -> None:
    server = start(ROOMY, {"restart_engine": True})
    with httpx.Client(base_url=server.url) as http:
        whole = http.post("/generate", json=body(5)).json()["output_ids"]
        for number in (1, 2):
            before = server.engine()
            stream = Stream(server.url)
            killed = time.monotonic()
            before.kill()
            assert stream.last()["error"]["code"] == "engine_dead"
            assert time.monotonic() - killed < 2
            health = http.get("/health")
            assert health.status_code == 503 and "being started" in health.text
            assert http.post("/generate", json=body(5)).status_code == 503
            until(lambda: http.get("/health").status_code == 200)
            assert server.engine().pid != before.pid
            assert http.post("/generate", json=body(5)).json()["output_ids"] == whole
            assert f"radixmesh:engine_restarts_total {number}.0" in http.get("/metrics").text
            assert until(lambda: server.stats()["num_pages"]) == ROOMY["max_total_tokens"] / 16
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.text()


def test_an_engine_that_hangs_is_killed_and_restarted(start: Any) -> None:
    server = start(ROOMY, {"restart_engine": True, "heartbeat_timeout": 2})
    with httpx.Client(base_url=server.url, timeout=30) as http:
        whole = http.post("/generate", json=body(5)).json()["output_ids"]
        before = server.engine()
        stream = Stream(server.url)
        before.suspend()
        assert stream.last()["error"]["code"] == "engine_dead"
        assert not before.is_running()
        assert "heartbeat_timeout" in http.post("/generate", json=body(5)).text
        until(lambda: http.get("/health").status_code == 200)
        assert server.engine().pid != before.pid
        assert http.post("/generate", json=body(5)).json()["output_ids"] == whole
    assert "gave no sign of life for 2 s" in server.text() and "Traceback" not in server.text()


def test_port_in_use_is_told_before_the_model_loads(start: Any, server: Any) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    second = start(options={"port": port}, ready=False)
    assert second.process.wait(30) != 0
    assert second.text().count("\n") == 1 and f"port {port}" in second.text()


def test_engine_that_cannot_start(start: Any) -> None:
    second = start({"tokenizer_path": "/nowhere/at/all"}, ready=False)
    assert second.process.wait(60) != 0
    assert "/nowhere/at/all" in second.text() and "Traceback" not in second.text()


@pytest.fixture(scope="module")
def narrow(start: Any) -> Any:
    """One request at a time, one may wait, and both have a second and a half."""
    return start({**ROOMY, "max_running_requests": 1, "max_queued_requests": 1}, {"request_timeout": 1.5})


def idle(server: Any) -> Callable[[], bool]:
    def check() -> bool:
        info = httpx.get(server.url + "/server_info").json()
        return info["num_open_requests"] == info["stats"]["num_running"] == info["stats"]["num_waiting"] == 0

    return check


def test_request_timeout(narrow: Any) -> None:
    answer = httpx.post(narrow.url + "/generate", json=body(), timeout=30)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "request_timeout" and "1.5 s" in answer.text
    assert Stream(narrow.url).last()["error"]["code"] == "request_timeout"
    until(idle(narrow))


def test_full_queue(narrow: Any) -> None:
    answers: list[httpx.Response] = []
    threads = [post_in_thread(narrow.url, body(), answers) for _ in range(6)]
    for thread in threads:
        thread.join()
    statuses = sorted(answer.status_code for answer in answers)
    assert set(statuses) == {429, 504}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full" and int(answer.headers["retry-after"]) > 0
    until(idle(narrow))


@pytest.fixture(scope="module")
def roomy(start: Any) -> Iterator[Any]:
    server = start(ROOMY)
    yield server
    until(idle(server))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_client_that_leaves_frees_its_request(roomy: Any, path: str, stream: bool) -> None:
    data: dict[str, Any] = {
        "/generate": {**body(), "stream": stream},
        "/v1/completions": {"prompt": "a", "max_tokens": 90_000, "stream": stream, "ignore_eos": True},
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": "a"}],
            "stream": stream,
            "n": 2,
            "ignore_eos": True,
        },
    }[path]
    before = roomy.stats()["aborted"]
    host, port = roomy.url.removeprefix("http://").split(":")
    raw = json.dumps(data).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        until(lambda: roomy.stats()["num_running"])
        if stream:
            assert connection.recv(10)
    until(idle(roomy))
    assert roomy.stats()["aborted"] == before + data.get("n", 1)


def test_an_idle_connection_outlasts_the_clients_patience(roomy: Any) -> None:
    """httpx and OpenAI's client drop one after five seconds; a server that does so too loses requests."""
    host, port = roomy.url.removeprefix("http://").split(":")
    connection = HTTPConnection(host, int(port))
    for pause in (0, 6):
        time.sleep(pause)
        connection.request("GET", "/health")
        assert connection.getresponse().read() and connection.sock is not None
        connection.auto_open = 0  # the first one stays, or the test fails
    connection.close()


def test_no_answer_waits_for_the_clients_acknowledgement(server: Any) -> None:
    """On a connection that is kept, Nagle's algorithm and a delayed ACK would add 40 ms to each answer."""
    times = []
    with httpx.Client(base_url=server.url) as http:
        for _ in range(30):
            started = time.monotonic()
            http.get("/health")
            times.append(time.monotonic() - started)
    assert sorted(times)[len(times) // 2] < 0.03


def test_abort_request(roomy: Any) -> None:
    with httpx.Client(base_url=roomy.url) as http:
        answers: list[httpx.Response] = []
        rid: dict[str, Any] = {"rid": "the-one"}
        thread = post_in_thread(roomy.url, body(**rid), answers)
        until(lambda: http.get("/server_info").json()["num_open_requests"])
        twice = http.post("/generate", json=body(**rid))
        assert twice.status_code == 400 and twice.json()["error"]["param"] == "rid"
        assert http.post("/abort_request", json={"rid": "another"}).json() == {"aborted": 0}
        assert http.post("/abort_request", json=rid).json() == {"aborted": 1}
        thread.join(20)
        assert answers[0].json()["meta_info"]["finish_reason"]["type"] == "abort"
        assert http.get("/flush_cache").status_code in (200, 409)


def test_flush_is_refused_while_requests_run(roomy: Any) -> None:
    stream = Stream(roomy.url)
    answer = httpx.get(roomy.url + "/flush_cache")
    assert answer.status_code == 409 and "running" in answer.json()["error"]["message"]
    assert httpx.post(roomy.url + "/abort_request", json={"abort_all": True}).json() == {"aborted": 1}
    assert stream.last()["meta_info"]["finish_reason"]["type"] == "abort"


def test_formats_are_told_at_start(server: Any) -> None:
    choices = {each["name"]: each for each in httpx.get(server.url + "/server_info").json()["choices"]}
    for name in ("tool_call_parser", "reasoning_parser"):
        reason = "the chat template shows no format that is known"
        assert choices[name] == {"name": name, "value": "none", "reason": reason}
        assert f"radixmesh: {name}=none because: {reason}\n" in server.text()


def test_without_a_tokenizer(start: Any) -> None:
    server = start({"skip_tokenizer_init": True})
    with httpx.Client(base_url=server.url) as http:
        for path, data, field in (
            ("/generate", {"text": "a"}, "text"),
            ("/v1/completions", {"prompt": "a"}, "prompt"),
            ("/v1/completions", {"prompt": [1], "stop": "a"}, "stop"),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "messages"),
            ("/tokenize", {"prompt": "a"}, "prompt"),
            ("/detokenize", {"tokens": [1]}, "tokens"),
        ):
            answer = http.post(path, json=data)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == field
            assert "skip_tokenizer_init" in answer.text
        got = http.post("/generate", json=body(4, return_logprob=True)).json()
        assert len(got["output_ids"]) == 4 and got["text"] == ""
        asked = {"prompt": [1, 2], "max_tokens": 2, "temperature": 0, "logprobs": 1}
        tokens = http.post("/v1/completions", json=asked).json()["choices"][0]["logprobs"]["tokens"]
        assert all(token.startswith("token_id:") for token in tokens)
