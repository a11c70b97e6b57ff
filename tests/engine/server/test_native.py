"""SGLang's routes and the server's own, over HTTP."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from radixmesh.backends.fake.oracle import expected_prompt_logprobs, expected_tokens
from radixmesh.engine.stats import EngineStats
from tests.engine.server.scripted import ScriptedLLM

VOCAB = 259


def tokens_after(prompt: list[int], count: int) -> list[int]:
    return expected_tokens(prompt, count, VOCAB)


def text_of(tokens: list[int]) -> str:
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


@pytest.fixture(scope="module")
def http(server: Any) -> Any:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def greedy(count: int, **more: Any) -> dict[str, Any]:
    return {"temperature": 0, "max_new_tokens": count, "ignore_eos": True, **more}


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_generate_one(http: Any) -> None:
    got = http.post("/generate", json={"text": "abc", "sampling_params": greedy(6), "rid": "mine"}).json()
    tokens = tokens_after(list(b"abc"), 6)
    assert got["output_ids"] == tokens and got["text"] == text_of(tokens)
    meta = got["meta_info"]
    assert meta["id"] == "mine" and meta["finish_reason"] == {"type": "length", "length": 6}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (3, 6, 0)
    assert meta["e2e_latency"] > 0 and "output_token_logprobs" not in meta


def test_generate_batch_with_parameters_for_each(http: Any) -> None:
    body = {"input_ids": [[5, 6], [9]], "sampling_params": [greedy(3), greedy(4, n=2)]}
    got = http.post("/generate", json=body).json()
    assert [each["output_ids"] for each in got] == [
        tokens_after([5, 6], 3), tokens_after([9], 4), tokens_after([9], 4),
    ]  # fmt: skip


def test_generate_batch_with_an_id_for_each(http: Any) -> None:
    body = {"text": ["a", "b"], "sampling_params": greedy(1), "rid": ["first", "second"]}
    got = http.post("/generate", json=body).json()
    assert [each["meta_info"]["id"] for each in got] == ["first", "second"]
    got = http.post("/generate", json={**body, "rid": "mine"}).json()
    assert [each["meta_info"]["id"] for each in got] == ["mine_0", "mine_1"]


def test_load() -> None:
    llm: Any = ScriptedLLM("", "")
    llm.stats = EngineStats(
        num_running=3, num_waiting=2, page_size=16, num_pages=10, free_pages=4, evictable_pages=1
    )

    async def get() -> Any:
        async with llm.http() as http:
            return (await http.get("/get_load")).json()

    expected = {"dp_rank": 0, "num_reqs": 5, "num_waiting_reqs": 2, "num_tokens": 5 * 16}
    assert asyncio.run(get()) == [expected]


def test_generate_one_in_a_list_answers_with_a_list(http: Any) -> None:
    assert len(http.post("/generate", json={"text": ["a"], "sampling_params": greedy(1)}).json()) == 1


def test_generate_logprobs(http: Any) -> None:
    body = {"input_ids": [1, 2], "sampling_params": greedy(3), "return_logprob": True, "top_logprobs_num": 2}
    meta = http.post("/generate", json=body).json()["meta_info"]
    tokens = tokens_after([1, 2], 3)
    assert meta["output_token_logprobs"] == [[-0.5, token, None] for token in tokens]
    assert meta["output_top_logprobs"] == [
        [[-0.5, token, None], [-1.5, (token + 1) % VOCAB, None]] for token in tokens
    ]
    body["return_text_in_logprobs"] = True
    meta = http.post("/generate", json=body).json()["meta_info"]
    assert [entry[2] for entry in meta["output_token_logprobs"]] == [text_of([token]) for token in tokens]


def test_generate_logprobs_of_given_ids(http: Any) -> None:
    body: dict[str, Any] = {
        "input_ids": [[1, 2], [3]],
        "sampling_params": greedy(2),
        "return_logprob": True,
    }
    both = [[7, 258], [4]]
    got = http.post("/generate", json={**body, "token_ids_logprob": both}).json()
    for prompt, ids, each in zip(body["input_ids"], both, got, strict=True):
        assert each["meta_info"]["output_token_ids_logprobs"] == [
            [[-0.5 - (other - token) % VOCAB, other, None] for other in ids]
            for token in tokens_after(prompt, 2)
        ]
    alike = http.post("/generate", json={**body, "token_ids_logprob": [4]}).json()
    assert (
        alike[1]["meta_info"]["output_token_ids_logprobs"] == got[1]["meta_info"]["output_token_ids_logprobs"]
    )
    assert len(alike[0]["meta_info"]["output_token_ids_logprobs"]) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_ids_logprob": [1], "return_logprob": False}, "only with return_logprob"),
        ({"token_ids_logprob": [259]}, "259"),
        ({"token_ids_logprob": list(range(65))}, "at most 64"),
        ({"token_ids_logprob": ["a"]}, "list of token ids"),
        ({"token_ids_logprob": [[1], [2]]}, "2 entries"),
    ],
)
def test_generate_refuses_ids_by_their_own_name(http: Any, fields: Any, message: str) -> None:
    got = http.post("/generate", json={"input_ids": [1], "return_logprob": True, **fields})
    assert got.status_code == 400 and message in got.text
    assert "token_ids_logprob" in got.text and "logprob_token_ids" not in got.text


def native(entries: list[tuple[int, float]]) -> list[list[Any]]:
    return [[value, token, None] for token, value in entries]


@pytest.mark.parametrize("first", [0, 2, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_generate_logprobs_of_the_prompt(http: Any, first: int, stream: bool) -> None:
    prompt, asked = [9, 8, 200, 7, 258], [3, 4]
    body = {
        "input_ids": prompt, "sampling_params": greedy(2), "return_logprob": True, "top_logprobs_num": 2,
        "token_ids_logprob": asked, "logprob_start_len": first, "stream": stream,
    }  # fmt: skip
    got = http.post("/generate", json=body)
    meta = (events(got.text)[-1] if stream else got.json())["meta_info"]
    known = expected_prompt_logprobs(prompt, VOCAB, top=2, asked=asked)[first:]
    after = prompt[first + 1 :]
    assert meta["input_token_logprobs"] == [
        [None, prompt[first], None],
        *native([(token, own) for token, (own, _, _) in zip(after, known, strict=True)]),
    ]
    assert meta["input_top_logprobs"] == [
        None, *(native([*zip(ids, (-0.5, -1.5), strict=True)]) for _, ids, _ in known),
    ]  # fmt: skip
    assert meta["input_token_ids_logprobs"] == [
        None, *(native([*zip(asked, values, strict=True)]) for _, _, values in known),
    ]  # fmt: skip
    assert [entry[1] for entry in meta["output_token_logprobs"]] == tokens_after(prompt, 2)


def test_generate_may_only_score_the_prompt(http: Any) -> None:
    body: dict[str, Any] = {
        "text": ["abc", "de"],
        "sampling_params": greedy(0),
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    got = http.post("/generate", json=body).json()
    for text, each in zip(body["text"], got, strict=True):
        assert (each["text"], each["output_ids"]) == ("", [])
        meta = each["meta_info"]
        assert meta["finish_reason"]["type"] == "length" and meta["completion_tokens"] == 0
        own = [value for value, _, _ in expected_prompt_logprobs(text.encode(), VOCAB)]
        assert [entry[0] for entry in meta["input_token_logprobs"]] == [None, *own]
        assert meta["output_token_logprobs"] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logprob_start_len": 0, "return_logprob": False}, "with return_logprob"),
        ({"logprob_start_len": -2}, "logprob_start_len is -2"),
        ({"logprob_start_len": 3}, "logprob_start_len is 3"),
        ({"logprob_start_len": [0, 1]}, "2 entries"),
        ({"logprob_start_len": 0, "top_logprobs_num": 21}, "top_logprobs_num is 21"),
    ],
)
def test_generate_refuses_what_no_prompt_has(http: Any, fields: Any, message: str) -> None:
    got = http.post("/generate", json={"input_ids": [1, 2, 3], "return_logprob": True, **fields})
    assert got.status_code == 400 and message in got.text


def test_generate_stream_is_cumulative(http: Any) -> None:
    got = http.post("/generate", json={"text": "q", "sampling_params": greedy(9), "stream": True})
    assert got.headers["content-type"].startswith("text/event-stream")
    parts, tokens = events(got.text), tokens_after([ord("q")], 9)
    counts = [part["meta_info"]["completion_tokens"] for part in parts]
    assert counts == sorted(counts) and counts[-1] == 9
    for part in parts:
        assert part["output_ids"] == tokens[: len(part["output_ids"])]
    assert parts[-1]["text"] == text_of(tokens)
    reasons = [part["meta_info"]["finish_reason"] for part in parts]
    assert reasons == [None] * (len(parts) - 1) + [{"type": "length", "length": 9}]


def test_generate_batch_stream_tells_the_index(http: Any) -> None:
    body = {"input_ids": [[3], [4]], "sampling_params": greedy(5, n=2), "stream": True}
    last = {part["index"]: part["output_ids"] for part in events(http.post("/generate", json=body).text)}
    assert last == {k: tokens_after([3 + k // 2], 5) for k in range(4)}


def test_stop_token_is_told(http: Any) -> None:
    tokens = tokens_after([1, 2], 5)
    body = {"input_ids": [1, 2], "sampling_params": {**greedy(9), "stop_token_ids": [tokens[4]]}}
    got = http.post("/generate", json=body).json()
    cut = tokens.index(tokens[4]) + 1
    assert got["meta_info"]["finish_reason"] == {"type": "stop", "matched": tokens[4]}
    assert got["output_ids"] == tokens[:cut]


def test_tokenize_and_back(http: Any) -> None:
    text = "héllo €"
    got = http.post("/tokenize", json={"prompt": text}).json()
    assert got == {"tokens": list(text.encode()), "count": len(text.encode()), "max_model_len": 4096}
    assert http.post("/detokenize", json={"tokens": got["tokens"]}).json() == {"prompt": text, "text": text}
    chat = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False}
    assert http.post("/tokenize", json=chat).json()["tokens"] == [257, *b"user\na", 258, *b"\n"]
    shown = http.post("/detokenize", json={"tokens": [97, 258], "skip_special_tokens": False}).json()
    assert shown["text"] == "a<|im_end|>"


def test_information(http: Any) -> None:
    info = http.get("/get_model_info").json()
    assert info["is_generation"] is True and info["vocab_size"] == VOCAB and info["context_length"] == 4096
    server = http.get("/get_server_info").json()
    assert server["backend"] == "fake" and server["server"]["host"] == "127.0.0.1"
    assert server["internal_states"][0]["num_pages"] == server["capacity"]["num_pages"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_flush_cache(http: Any, method: str) -> None:
    body = {"input_ids": list(range(64)), "sampling_params": greedy(1)}
    http.post("/generate", json=body)
    assert http.post("/generate", json=body).json()["meta_info"]["cached_tokens"] > 0
    assert http.request(method, "/flush_cache").json()["success"] is True
    assert http.post("/generate", json=body).json()["meta_info"]["cached_tokens"] == 0


def test_health(http: Any) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/health_generate").status_code == 200


def test_metrics(http: Any) -> None:
    def value(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"radixmesh:{name}"))

    names = (
        "time_to_first_token_seconds_count",
        "e2e_request_latency_seconds_count",
        'num_requests_total{finish_reason="length"}',
        'http_responses_total{route="/generate",status="200"}',
        'http_responses_total{route="/generate",status="400"}',
    )
    before = [value(name) for name in names]
    http.post("/generate", json={"input_ids": [[1], [2]], "sampling_params": greedy(5)})
    http.post("/generate", json={"input_ids": [1], "sampling_params": {"top_p": 7}})
    after = [value(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 2, 2, 1, 1]
    for gauge in ("num_running_reqs", "num_queue_reqs", "token_usage", "num_preemptions_total"):
        assert value(gauge) == 0
    assert 0 <= value("cache_hit_rate") <= 1 and value("max_total_num_tokens") == 65536
    for counter in ("prompt_tokens_total", "generation_tokens_total", "cached_tokens_total"):
        assert value(counter) >= 0
