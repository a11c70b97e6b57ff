"""Whatever is wrong with a request, the answer says so in OpenAI's form, and the server lives on."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

COMPLETIONS, CHAT, GENERATE = "/v1/completions", "/v1/chat/completions", "/generate"
HI = [{"role": "user", "content": "hi"}]
CONTINUE = {"continue_final_message": True}


@pytest.fixture(scope="module")
def http(server: Any) -> Any:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client
        # After everything below, it serves as before.
        assert client.get("/health_generate").status_code == 200
        assert client.get("/server_info").json()["num_open_requests"] == 0


def check(answer: httpx.Response, status: int, param: str | None, code: str | None = None) -> str:
    """The message of an error object of this status, field and code."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param and error["code"] == code
    assert "Traceback" not in error["message"] and "\n" not in error["message"]
    return str(error["message"])


def parts(*content: Any) -> list[Any]:
    return [{"role": "user", "content": list(content)}]


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "test", "schema": value}}


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    (COMPLETIONS, {}, "prompt"),
    (COMPLETIONS, {"prompt": None}, "prompt"),
    (COMPLETIONS, {"prompt": ""}, "prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": 7}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", 1]}, "prompt"),
    (COMPLETIONS, {"prompt": [[1], []]}, "prompt"),
    (COMPLETIONS, {"prompt": [True]}, "prompt"),
    (COMPLETIONS, {"prompt": [259]}, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt"),
    (COMPLETIONS, {"prompt": [2**70]}, "prompt"),
    (COMPLETIONS, {"prompt": [[1], [2, 400]]}, "prompt"),
    (COMPLETIONS, {"prompt": "a" * 4096}, "prompt"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": "5"}, "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 10**30}, "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "min_tokens": 17}, "min_tokens"),
    (COMPLETIONS, {"prompt": "a", "temperature": -0.1}, "temperature"),
    (COMPLETIONS, {"prompt": "a", "temperature": "0.5"}, "temperature"),
    (COMPLETIONS, {"prompt": "a", "temperature": True}, "temperature"),
    (COMPLETIONS, {"prompt": "a", "temperature": 10**400}, "temperature"),
    (COMPLETIONS, {"prompt": "a", "top_p": 0}, "top_p"),
    (COMPLETIONS, {"prompt": "a", "top_p": 1.1}, "top_p"),
    (COMPLETIONS, {"prompt": "a", "top_k": 0}, "top_k"),
    (COMPLETIONS, {"prompt": "a", "min_p": -1}, "min_p"),
    (COMPLETIONS, {"prompt": "a", "frequency_penalty": 3}, "frequency_penalty"),
    (COMPLETIONS, {"prompt": "a", "presence_penalty": -3}, "presence_penalty"),
    (COMPLETIONS, {"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
    (COMPLETIONS, {"prompt": "a", "n": 0}, "n"),
    (COMPLETIONS, {"prompt": "a", "n": 129}, "n"),
    (COMPLETIONS, {"prompt": "a", "n": 2, "best_of": 1}, "best_of"),
    (COMPLETIONS, {"prompt": "a", "best_of": 129}, "best_of"),
    (COMPLETIONS, {"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
    (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"prompt": "a", "logprobs": True}, "logprobs"),
    (COMPLETIONS, {"prompt": "a", "stop": ""}, "stop"),
    (COMPLETIONS, {"prompt": "a", "stop": ["x"] * 17}, "stop"),
    (COMPLETIONS, {"prompt": "a", "stop": [1]}, "stop"),
    (COMPLETIONS, {"prompt": "a", "stop": "y" * 5000}, "stop"),
    (COMPLETIONS, {"prompt": "a", "stop_token_ids": [259]}, "stop_token_ids"),
    (COMPLETIONS, {"prompt": "a", "stop_token_ids": ["1"]}, "stop_token_ids[0]"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"259": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"1": "2"}}, "logit_bias.1"),
    (COMPLETIONS, {"prompt": "a", "seed": 10**400}, "seed"),
    (COMPLETIONS, {"prompt": "a", "seed": 1.0}, "seed"),
    (COMPLETIONS, {"prompt": "a", "priority": 2**40}, "priority"),
    (COMPLETIONS, {"prompt": "a", "stream": 1}, "stream"),
    (COMPLETIONS, {"prompt": "a", "stream_options": {}}, "stream_options"),
    (COMPLETIONS, {"prompt": "a", "stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    (COMPLETIONS, {"prompt": "a", "stream": True, "prompt_": "b"}, "prompt_"),
    (COMPLETIONS, {"prompt": "a", "rid": ""}, "rid"),
    (COMPLETIONS, {"prompt": "a", "temprature": 1}, "temprature"),
    (COMPLETIONS, {"prompt": "a", "echo": True, "logprobs": 1, "suffix": "b"}, "suffix"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "prompt_logprobs": 21}, "prompt_logprobs"),
    (COMPLETIONS, {"prompt": "a", "prompt_logprobs": -1}, "prompt_logprobs"),
    (COMPLETIONS, {"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    (CHAT, {"messages": HI, **CONTINUE, "add_generation_prompt": True}, "add_generation_prompt"),
    (CHAT, {"messages": [{"role": "assistant"}], **CONTINUE}, "continue_final_message"),
    (CHAT, {"messages": [{"role": "user", "content": "a", "prefix": True}]}, "messages[0].prefix"),
    (CHAT, {"messages": [{"role": "assistant", "content": "a", "prefix": True}, *HI]}, "messages[0].prefix"),
    (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
    (COMPLETIONS, {"prompt": "a", "response_format": {"type": "json"}}, "response_format.type"),
    (COMPLETIONS, {"prompt": "a", "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (COMPLETIONS, {"prompt": "a", "response_format": {"type": "text", "x": 1}}, "response_format.x"),
    (COMPLETIONS, {"prompt": "a", "response_format": schema({"type": "objekt"})}, "response_format"),
    (
        COMPLETIONS,
        {"prompt": "a", "response_format": schema({"$ref": "#"}), "stream": True},
        "response_format",
    ),
    (COMPLETIONS, {"prompt": "a", "response_format": schema([])}, "response_format.json_schema.schema"),
    (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "regex": "(a"}, "regex"),
    (COMPLETIONS, {"prompt": "a", "regex": "((((((a{1,50}){1,50}){1,50}){1,50}){1,50}){1,50})"}, "regex"),
    (COMPLETIONS, {"prompt": "a", "regex": "(" * 300 + "a" + ")" * 300}, "regex"),
    (COMPLETIONS, {"prompt": "a", "regex": "a", "ebnf": "b"}, "ebnf"),
    (COMPLETIONS, {"prompt": "a", "choices": []}, "choices"),
    (COMPLETIONS, {"prompt": "a", "guided_grammar": "what"}, "guided_grammar"),
    (COMPLETIONS, {"prompt": "a", "structured_outputs": {"json": 3}}, "structured_outputs.json"),
    (
        COMPLETIONS,
        {"prompt": "a", "structured_outputs": {"regex": "a", "choice": ["b"]}},
        "structured_outputs",
    ),
    (CHAT, {"messages": HI, "response_format": schema({"type": "objekt"})}, "response_format"),
    (CHAT, {"messages": HI, "structured_outputs": {"x": 1}}, "structured_outputs.x"),
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hi"}, "messages"),
    (CHAT, {"messages": ["hi"]}, "messages[0]"),
    (CHAT, {"messages": [{"content": "a"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
    (CHAT, {"messages": [*HI, {"role": "user"}]}, "messages[1].content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": "a", "mood": "b"}]}, "messages[0].mood"),
    (CHAT, {"messages": parts({"type": "text"})}, "messages[0].content[0].text"),
    (CHAT, {"messages": parts({"type": "image_url", "image_url": {}})}, "messages[0].content[0].type"),
    (CHAT, {"messages": parts(3)}, "messages[0].content[0]"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
    (CHAT, {"messages": [{"role": "developer", "content": "a"}]}, "messages"),  # the template refuses it
    (CHAT, {"messages": [{"role": "user", "content": "a" * 4096}]}, "messages"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"messages": HI, "logprobs": 1}, "logprobs"),
    (CHAT, {"messages": HI, "max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, "tools[0].function"),
    (CHAT, {"messages": HI, "tool_choice": "required"}, "tool_choice"),
    (CHAT, {"messages": HI, "store": True}, "store"),
    (CHAT, {"messages": HI, "modalities": ["audio"]}, "modalities"),
    (CHAT, {"messages": HI, "reasoning_effort": "high"}, "reasoning_effort"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    (GENERATE, {}, "text"),
    (GENERATE, {"text": "a", "input_ids": [1]}, "text"),
    (GENERATE, {"text": []}, "text"),
    (GENERATE, {"input_ids": ["a"]}, "input_ids"),
    (GENERATE, {"input_ids": [500]}, "input_ids"),
    (GENERATE, {"text": "a" * 4096}, "text"),
    (GENERATE, {"text": "a", "sampling_params": 3}, "sampling_params"),
    (GENERATE, {"text": "a", "sampling_params": {"max_tokens": 3}}, "sampling_params.max_tokens"),
    (GENERATE, {"text": "a", "sampling_params": {"top_p": -1}}, "sampling_params.top_p"),
    (GENERATE, {"text": "a", "sampling_params": {"regex": "(a"}}, "sampling_params.regex"),
    (GENERATE, {"text": "a", "sampling_params": {"json_schema": "{"}}, "sampling_params.json_schema"),
    (GENERATE, {"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "sampling_params.ebnf"),
    (GENERATE, {"text": "a", "sampling_params": {"stop_token_ids": [259]}}, "sampling_params.stop_token_ids"),
    (GENERATE, {"text": ["a", "b"], "sampling_params": [{}, {"n": -1}]}, "sampling_params[1].n"),
    (GENERATE, {"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
    (GENERATE, {"text": "a", "logprob_start_len": 0}, "logprob_start_len"),
    (GENERATE, {"text": "a", "return_logprob": True, "top_logprobs_num": 30}, "top_logprobs_num"),
    (GENERATE, {"text": "a", "top_logprobs_num": 2}, "top_logprobs_num"),
    (GENERATE, {"text": ["a", "b"], "return_logprob": False, "top_logprobs_num": [0, 1]}, "top_logprobs_num"),
    (GENERATE, {"text": "a", "return_text_in_logprobs": True}, "return_text_in_logprobs"),
    (GENERATE, {"text": ["a", "b"], "rid": ["x"]}, "rid"),
    (GENERATE, {"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
    (GENERATE, {"text": ["a", "b"], "rid": ["x", ""]}, "rid"),
    (GENERATE, {"text": "a", "image_data": "x"}, "image_data"),
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": HI}, "prompt"),
    ("/tokenize", {"prompt": "a", "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
    ("/tokenize", {"messages": HI, "add_special_tokens": True}, "add_special_tokens"),
    ("/detokenize", {"tokens": [0, 259]}, "tokens[1]"),
    ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ("/abort_request", {}, "rid"),
    ("/abort_request", {"rid": "a", "abort_all": True}, "rid"),
]


@pytest.mark.parametrize(("path", "body", "field"), FIELDS, ids=lambda value: str(value)[:60])
def test_field_at_fault_is_named(http: Any, path: str, body: dict[str, Any], field: str) -> None:
    message = check(http.post(path, json=body), 400, field)
    assert len(message) < 1000
    # The message itself says the field too; of prompts and templates, in the engine's words.
    assert field in message or "the prompt" in message or field == "messages"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_unknown_model(http: Any, path: str, stream: bool) -> None:
    body = {"model": "gpt-4o", "prompt": "a"} if path == COMPLETIONS else {"model": "gpt-4o", "messages": HI}
    message = check(http.post(path, json={**body, "stream": stream}), 404, "model", "model_not_found")
    assert "gpt-4o" in message and "fake" in message


@pytest.mark.parametrize("name", ["fake", "default", None])
def test_known_models(http: Any, name: str | None) -> None:
    body = {"model": name, "prompt": "a", "max_tokens": 1}
    assert http.post(COMPLETIONS, json=body).status_code == 200


def test_near_names_are_told(http: Any) -> None:
    body = {"prompt": "a", "temprature": 1}
    assert "near are temperature" in check(http.post(COMPLETIONS, json=body), 400, "temprature")


def send(http: Any, data: bytes, path: str = COMPLETIONS) -> httpx.Response:
    answer: httpx.Response = http.post(path, content=data, headers={"content-type": "application/json"})
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"prompt": "a"} x',
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": -Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xc3"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00 and on"}',
        b"[" * 90_000,
        b'{"prompt":' * 9_000,
        b'{"prompt": "a", "logit_bias": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001,
        b'{"messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b"[]",
        b"null",
        b'"text"',
    ],
    ids=lambda data: repr(data[:40]),
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, GENERATE, "/tokenize"])
def test_malformed_bodies(http: Any, path: str, data: bytes) -> None:
    answer = send(http, data, path)
    assert "the request body" in check(answer, 400, None)


def test_deep_nesting_that_still_parses(http: Any) -> None:
    depth = 400
    data = b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
    check(send(http, data, CHAT), 400, "messages[0]")
    data = b'{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"x": '
    assert send(http, data + b"[" * depth + b"]" * depth + b"}}", CHAT).status_code in (200, 400)


def test_body_over_the_limit(http: Any) -> None:
    check(send(http, b" " * 100_001), 413, None, "body_too_large")

    def chunks() -> Iterator[bytes]:  # sent chunked: its length is not told beforehand
        for _ in range(30):
            yield b" " * 10_000

    headers = {"content-type": "application/json"}
    answer = http.post(COMPLETIONS, content=chunks(), headers=headers)
    check(answer, 413, None, "body_too_large")
    assert send(http, b'{"prompt": "a", "max_tokens": 1}'.ljust(100_000)).status_code == 200


def test_content_type(http: Any) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = http.post(COMPLETIONS, content=b'{"prompt": "a"}', headers={"content-type": kind})
        assert kind.split(";")[0] in check(answer, 415, None)
    headers = {"content-type": "application/json; charset=utf-8"}
    body = b'{"prompt": "a", "max_tokens": 1}'
    assert http.post(COMPLETIONS, content=body, headers=headers).status_code == 200


def test_routes(http: Any) -> None:
    assert "/v1/audio/speech" in check(http.post("/v1/audio/speech", json={}), 404, None)
    answer = http.get(COMPLETIONS)
    assert "GET" in check(answer, 405, None) and answer.headers["allow"] == "POST"


def test_too_many_sequences(http: Any) -> None:
    body = {"prompt": ["a"] * 100, "n": 128, "max_tokens": 1}
    assert "12800" in check(http.post(COMPLETIONS, json=body), 400, None)


def test_raw_garbage_on_the_socket(server: Any, http: Any) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for data in (b"\x00\xff\x00\xff\r\n\r\n", b"POST /generate HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(data)
            assert b" 400 " in connection.recv(4096).split(b"\r\n")[0]
    assert http.get("/health").status_code == 200
