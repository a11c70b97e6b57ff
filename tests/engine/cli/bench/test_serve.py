"""The serving benchmark against a small server whose every answer is known."""

import asyncio
import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from radixmesh.engine.cli.bench.clients import Target, check_unit, send
from radixmesh.engine.cli.bench.datasets import DatasetOptions, Turn
from radixmesh.engine.cli.bench.http_client import HttpError, check_url, fetch_json
from radixmesh.engine.cli.bench.serve import ServeBenchOptions, measure, start_times
from radixmesh.engine.errors import ConfigError


class Server(ThreadingHTTPServer):
    """Answers each request with `answer(path, body)`: events to stream, an object, or a status."""

    def __init__(self, answer: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.seen: list[tuple[str, Any]] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.loads(data) if data else None
        with self.server.lock:
            self.server.seen.append((self.path, body))
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
        answer = self.server.answer(self.path, body)
        if isinstance(answer, list):
            self.stream(answer)
        else:
            status, value = answer if isinstance(answer, tuple) else (200, answer)
            self.whole(status, json.dumps(value).encode())

    def leave(self) -> None:
        """Before the last byte: the client may send its next request at once after it."""
        with self.server.lock:
            self.server.open -= 1

    def whole(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.leave()
        self.wfile.write(data)

    def stream(self, events: list[Any]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        text = "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n"
        half = len(text) // 2  # cut in the middle of an event: a client must join the pieces
        for piece in (text[:half].encode(), text[half:].encode()):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
            time.sleep(0.01)
        self.leave()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


def answer(path: str, body: Any) -> Any:
    usage = {"prompt_tokens": 11, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    if path == "/v1/models":
        return {"data": [{"id": "known-model"}]}
    if path == "/v1/completions":
        texts = [{"choices": [{"text": each}]} for each in ("a", "", "bc")]
        return [*texts, {"choices": [], "usage": usage}]
    if path == "/v1/chat/completions":
        deltas: list[Any] = [{"role": "assistant", "content": ""}, {"content": "x"}, {"content": "y"}]
        return [*({"choices": [{"delta": each}]} for each in deltas), {"choices": [], "usage": usage}]
    if path == "/generate":
        return [
            {
                "text": "t" * count,
                "output_ids": list(range(count)),
                "meta_info": {"completion_tokens": count, "prompt_tokens": 11, "cached_tokens": 8},
            }
            for count in (1, 3, 4)
        ]
    if path == "/flush_cache":
        return {}
    return 404, {"error": "no such route"}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def target(server: Server, protocol: Any, **options: Any) -> Target:
    return Target(base_url=server.url, protocol=protocol, model="m", **options)


@pytest.mark.parametrize("protocol, arrivals", [("openai", 2), ("openai-chat", 2), ("sglang", 3)])
def test_each_protocol_counts_tokens_and_arrivals(server: Server, protocol: Any, arrivals: int) -> None:
    record = asyncio.run(send(target(server, protocol), Turn("hello", 4)))
    assert record.error is None
    assert (record.output_tokens, record.prompt_tokens, record.cached_tokens) == (4, 11, 8)
    assert len(record.arrivals) == len(record.arrived_tokens) == arrivals
    assert record.start < record.arrivals[0] <= record.arrivals[-1] == record.end
    assert record.text == {"openai": "abc", "openai-chat": "xy", "sglang": "tttt"}[protocol]


def test_what_is_sent(server: Server) -> None:
    for protocol in ("openai", "openai-chat", "sglang"):
        asyncio.run(send(target(server, protocol, ignore_eos=True, extra_body={"top_p": 0.5}), Turn("hi", 4)))
    asyncio.run(send(target(server, "openai"), Turn([5, 6], 4)))
    asyncio.run(send(target(server, "sglang"), Turn([5, 6], 4)))
    bodies = [body for _, body in server.seen]
    assert bodies[0]["prompt"] == "hi"
    assert bodies[1]["messages"] == [{"role": "user", "content": "hi"}]
    assert bodies[2]["text"] == "hi"
    assert bodies[2]["sampling_params"] == {"max_new_tokens": 4, "temperature": 0.0, "ignore_eos": True}
    assert all(body["stream"] is True and body["top_p"] == 0.5 for body in bodies[:3])
    assert all(body["max_tokens"] == 4 and body["ignore_eos"] is True for body in bodies[:2])
    assert bodies[3]["prompt"] == [5, 6] and "ignore_eos" not in bodies[3]
    assert bodies[4]["input_ids"] == [5, 6]


def test_failures_are_in_the_record(server: Server) -> None:
    server.answer = lambda path, body: (429, {"error": {"message": "too many"}})
    record = asyncio.run(send(target(server, "openai"), Turn("x", 1)))
    assert record.error is not None and "429" in record.error and "too many" in record.error
    server.answer = lambda path, body: [{"error": {"message": "engine died"}}]
    assert asyncio.run(send(target(server, "sglang"), Turn("x", 1))).error == "engine died"
    server.answer = lambda path, body: [{"unknown": 1}]
    assert asyncio.run(send(target(server, "sglang"), Turn("x", 1))).error == "the stream has no 'meta_info'"


def test_token_ids_may_come_piece_by_piece(server: Server) -> None:
    def event(ids: list[int], count: int) -> Any:
        return {"text": "", "output_ids": ids, "meta_info": {"completion_tokens": count, "prompt_tokens": 1}}

    server.answer = lambda path, body: [event([5], 1), event([6, 7], 3), event([8], 4)]
    assert asyncio.run(send(target(server, "sglang"), Turn([1], 4))).token_ids == [5, 6, 7, 8]


def test_no_server_is_an_http_error() -> None:
    with pytest.raises(HttpError, match="127.0.0.1:9 cannot be reached"):
        asyncio.run(fetch_json("GET", "http://127.0.0.1:9/x"))


def run_bench(server: Server, dataset: DatasetOptions, **options: Any) -> Any:
    return asyncio.run(measure(ServeBenchOptions(base_url=server.url + "/", **options), dataset))


def test_a_run_warms_up_flushes_and_keeps_to_its_concurrency(server: Server) -> None:
    dataset = DatasetOptions(num_prompts=8, random_input_len=5)
    records, duration = run_bench(server, dataset, num_warmups=2, flush_cache=True, max_concurrency=3)
    paths = [path for path, _ in server.seen]
    assert paths == ["/v1/models"] + ["/v1/completions"] * 2 + ["/flush_cache"] + ["/v1/completions"] * 8
    assert server.seen[1][1]["model"] == "known-model"
    prompts = [tuple(body["prompt"]) for path, body in server.seen if path == "/v1/completions"]
    assert len(set(prompts)) == 10  # the warm-up's are others
    assert 1 < server.most_open <= 3
    assert len(records) == 8 and duration >= 8 * 0.02 / 3


@pytest.mark.parametrize("protocol", ["openai", "openai-chat", "sglang"])
def test_turns_wait_for_the_answer_and_carry_it(server: Server, protocol: Any) -> None:
    dataset = DatasetOptions(dataset_name="multi-turn", num_prompts=1, num_turns=3, question_len=2)
    records, _ = run_bench(server, dataset, num_warmups=0, backend=protocol)
    assert len(records) == 3
    assert all(before.end <= after.start for before, after in zip(records, records[1:], strict=False))
    bodies = [body for path, body in server.seen if path != "/v1/models"]
    if protocol == "openai-chat":
        roles = [[each["role"] for each in body["messages"]] for body in bodies]
        assert roles[2] == ["user", "assistant"] * 2 + ["user"]
        assert bodies[1]["messages"][1]["content"] == "xy"
    elif protocol == "openai":
        assert bodies[1]["prompt"].startswith(bodies[0]["prompt"] + "abc ")
        assert len(bodies[2]["prompt"].split()) == 6  # "abc" hangs on the word before it
    else:
        assert bodies[1]["input_ids"][:6] == bodies[0]["input_ids"] + [0, 1, 2, 3]
        assert len(bodies[2]["input_ids"]) == 2 + 4 + 2 + 4 + 2


def test_a_failed_turn_ends_its_conversation(server: Server) -> None:
    server.answer = lambda path, body: answer(path, body) if path == "/v1/models" else (500, {})
    dataset = DatasetOptions(dataset_name="multi-turn", num_prompts=2, num_turns=3)
    records, _ = run_bench(server, dataset, num_warmups=0)
    assert len(records) == 2 and all(each.error for each in records)
    with pytest.raises(HttpError, match="warm-up"):
        run_bench(server, dataset, num_warmups=1)


def test_poisson_moments() -> None:
    assert start_times(3, math.inf, seed=1) == [0.0] * 3
    moments = start_times(2000, 10.0, seed=1)
    assert moments[0] == 0.0 and moments == sorted(moments) == start_times(2000, 10.0, seed=1)
    assert moments[-1] == pytest.approx(200, rel=0.1)  # 2,000 requests at 10 a second


def test_units() -> None:
    assert check_unit("openai", "auto", False) == "ids"
    assert check_unit("openai", "auto", True) == "words"
    assert check_unit("openai-chat", "auto", False) == "words"
    assert check_unit("sglang", "ids", True) == "ids"
    with pytest.raises(ConfigError, match="prompt_format"):
        check_unit("openai-chat", "ids", False)


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://host", "http://", "http://host:port"])
def test_wrong_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        check_url(url)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"request_rate": 0.0}, "request_rate"),
        ({"request_rate": math.nan}, "request_rate"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"num_warmups": -1}, "num_warmups"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ServeBenchOptions(**options)
