"""`radixmesh serve` with real weights, as a user meets it: the official client, traffic, and both ends."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.running import Running
from tests.traffic import Traffic, settled_stats

pytestmark = pytest.mark.slow

# few and small shapes: they compile in seconds
SMALL = ["--max-running-requests", "16", "--chunked-prefill-size", "64", "--max-total-tokens", "6144"]
SMOL, GEMMA = "smollm2-135m-instruct", "gemma3-270m"
ASK = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]


def serve(model: str, folder: Path) -> Running:
    patience = ["--drain-timeout", "300"]
    arguments = ["-m", "radixmesh", "serve", "--model-path", model, "--port", "0", *SMALL, *patience]
    started = Running.start(arguments, folder / "log", **os.environ)
    try:
        return started.wait_until_ready(900)
    except AssertionError:
        started.end()
        raise


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = serve(SMOL, tmp_path_factory.mktemp("smol"))
    yield running
    running.end()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_chat_streamed_and_whole(client: Any) -> None:
    asked = {"model": SMOL, "messages": ASK, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    assert "Paris" in whole.choices[0].message.content and whole.choices[0].finish_reason == "stop"
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    usage = chunks[-1].usage
    assert usage.completion_tokens == whole.usage.completion_tokens > 3
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 20
    assert usage.prompt_tokens_details.cached_tokens >= 16  # the first answer's pages
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 3


def test_seed_n_and_logprobs(client: Any) -> None:
    asked = {
        "model": SMOL, "messages": ASK, "temperature": 1.0, "max_tokens": 12, "n": 2, "seed": 7,
        "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    first, again = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and texts[0] != texts[1]
    for choice in first.choices:
        said = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
        assert said.decode(errors="replace").startswith(choice.message.content)
        for entry in choice.logprobs.content:
            best = [top.logprob for top in entry.top_logprobs]
            assert best == sorted(best, reverse=True) and entry.logprob <= best[0] <= 0
    other = client.chat.completions.create(**asked | {"seed": 8})
    assert [choice.message.content for choice in other.choices] != texts


def test_stop_strings_are_never_streamed(client: Any) -> None:
    asked = {"model": SMOL, "prompt": "Count: 1, 2, 3, 4, 5, 6,", "temperature": 0, "max_tokens": 40}
    whole = client.completions.create(**asked).choices[0].text
    assert " 9, 10, 11" in whole
    stop = " 9, 10"  # several tokens
    got = list(client.completions.create(**asked, stop=[stop], stream=True))
    assert "".join(chunk.choices[0].text for chunk in got) == whole[: whole.index(stop)]
    assert got[-1].choices[0].finish_reason == "stop"


def test_native_form_says_the_same(server: Running, client: Any) -> None:
    prompt = "The capital of France is"
    openai_form = client.completions.create(model=SMOL, prompt=prompt, temperature=0, max_tokens=10)
    sampling = {"temperature": 0, "max_new_tokens": 10}
    body = {"text": prompt, "sampling_params": sampling, "return_logprob": True}
    got = httpx.post(server.url + "/generate", json=body, timeout=60).json()
    assert got["text"] == openai_form.choices[0].text and "Paris" in got["text"]
    assert got["meta_info"]["completion_tokens"] == len(got["output_ids"]) == 10
    assert [entry[1] for entry in got["meta_info"]["output_token_logprobs"]] == got["output_ids"]


def test_a_thousand_mixed_requests_leave_nothing_behind(server: Running) -> None:
    outcomes = Traffic(server.url, tokens=6, patience=1.0, timeout=600).run()
    assert outcomes.keys() == {"ok", "refused", "left", "aborted"} and min(outcomes.values()) > 100
    stats = settled_stats(server.url, 60)
    assert stats["cached_tokens"] > 0 and stats["aborted"] > 0
    metrics = httpx.get(server.url + "/metrics").text
    assert "radixmesh:" in metrics
    assert httpx.post(server.url + "/flush_cache").status_code == 200
    assert settled_stats(server.url)["free_pages"] == stats["num_pages"]
    assert "Traceback" not in server.text()


def test_a_prompt_of_200_000_tokens_is_refused_at_once(server: Running) -> None:
    text = "one two three four " * 50_000
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        ("/v1/completions", {"prompt": text}),
        ("/generate", {"text": text}),
        ("/generate", {"input_ids": [5] * 200_000}),
    ):
        started = time.monotonic()
        answer = httpx.post(server.url + path, json=body, timeout=30)
        assert answer.status_code == 400 and "tokens" in answer.json()["error"]["message"]
        assert time.monotonic() - started < 5


def test_the_end_of_the_engine(server: Running) -> None:
    """Last in this file: open requests hear of it, /health turns red, and the server ends with status 1."""
    lines: list[str] = []
    body = {
        "text": "On and on",
        "stream": True,
        "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True},
    }

    def read() -> None:
        with httpx.stream("POST", server.url + "/generate", json=body, timeout=120) as answer:
            lines.extend(answer.iter_lines())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while not server.stats()["num_running"]:
        time.sleep(0.1)
    os.kill(server.engine().pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while httpx.get(server.url + "/health").status_code != 503:
        assert time.monotonic() < deadline
    reader.join(30)
    assert not reader.is_alive() and any("engine_dead" in line for line in lines)
    assert server.process.wait(30) == 1
    assert "Traceback" not in server.text()


def test_gemma_and_sigterm(tmp_path: Path) -> None:
    """A running request finishes, a new one is told that the server stops."""
    server = serve(GEMMA, tmp_path)
    try:
        answers: list[httpx.Response] = []
        asked = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 40, "ignore_eos": True}
        running = threading.Thread(
            target=lambda: answers.append(
                httpx.post(server.url + "/v1/completions", json=asked, timeout=120)
            ),
            daemon=True,
        )
        running.start()
        while not server.stats()["num_running"]:
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        while "stopping" not in server.text():
            time.sleep(0.05)
        refused = httpx.post(server.url + "/v1/completions", json=asked, timeout=30)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "not_serving"
        running.join(120)
        choice = answers[0].json()["choices"][0]
        assert "capital of" in choice["text"] and choice["finish_reason"] == "length"
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.text()
    finally:
        server.end()
