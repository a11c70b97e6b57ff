"""Ollama's routes by its own client: over a real server, and over an engine whose answer is a script."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import pytest
from gguf import GGUFWriter, LlamaFileType

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.engine.grammar.grammar import GrammarSpec, Thinking
from radixmesh.engine.server.ollama.models import details, facts_of
from tests.engine.server.anthropic.test_messages import SWITCHED
from tests.engine.server.scripted import ScriptedLLM
from tests.engine.server.test_chat_tools import ARGUMENTS, CALLS, TEMPLATE, THINKS, TOOLS
from tests.engine.server.test_openai_client import VOCAB, chat_prompt, text_of, tokens_after

HI: list[Any] = [{"role": "user", "content": "Hi"}]


# Over the fake model: its tokens are computed by hand


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[ollama.Client]:
    with ollama.Client(server.url) as client:
        yield client


def until_end(prompt: list[int], count: int) -> tuple[str, str, int]:
    """What the fake model answers within `count` tokens: text, done_reason and the tokens' number."""
    tokens = expected_tokens(prompt, count, VOCAB)
    end = tokens.index(258) if 258 in tokens else count
    return text_of(tokens[:end]), "stop" if end < count else "length", min(end + 1, count)


def greedy(count: int, **more: Any) -> dict[str, Any]:
    return {"temperature": 0, "num_predict": count, **more}


def test_chat(client: ollama.Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    got = client.chat(model="fake", messages=messages, options=greedy(20))
    prompt = chat_prompt(("system", "Be brief."), ("user", "Hi"))
    text, reason, count = until_end(prompt, 20)
    assert (got.message.role, got.message.content, got.model) == ("assistant", text, "fake")
    assert (got.done, got.done_reason) == (True, reason)
    assert (got.prompt_eval_count, got.eval_count) == (len(prompt), count)
    assert got.prompt_eval_duration and got.eval_duration is not None
    assert got.total_duration == got.prompt_eval_duration + got.eval_duration
    assert got.message.tool_calls is None and got.message.thinking is None


def test_streams(client: ollama.Client) -> None:
    text, reason, _ = until_end(chat_prompt(("user", "Hi")), 30)
    chunks = list(client.chat(model="fake:latest", messages=HI, options=greedy(30), stream=True))
    assert "".join(chunk.message.content or "" for chunk in chunks) == text
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].done_reason == reason and len(chunks) > 2
    parts = list(client.generate("fake", "Hi", options=greedy(30), stream=True))
    assert "".join(part.response or "" for part in parts) == text and parts[-1].eval_count


def test_generate_with_and_without_the_template(client: ollama.Client) -> None:
    got = client.generate("fake", "Hi", system="Be brief.", options=greedy(12))
    assert got.response == until_end(chat_prompt(("system", "Be brief."), ("user", "Hi")), 12)[0]
    raw = client.generate("fake", "Hi", raw=True, options=greedy(12))
    assert raw.response == until_end(list(b"Hi"), 12)[0]


def test_a_stream_is_the_default(server: Any) -> None:
    answer = httpx.post(server.url + "/api/generate", json={"prompt": "Hi", "options": greedy(3)})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["done"] and all(line["created_at"].endswith("Z") for line in lines)


def test_stop_and_context(client: ollama.Client) -> None:
    whole, _, _ = until_end(list(b"Hi"), 60)
    stop = next(whole[k : k + 2] for k in range(3, len(whole)) if whole[k : k + 2].isascii())
    got = client.generate("fake", "Hi", raw=True, options=greedy(60, stop=[stop]))
    assert got.response == whole[: whole.index(stop)] and got.done_reason == "stop"
    got = client.generate("fake", "Hi", raw=True, options={"temperature": 0, "num_ctx": 6})
    assert (got.eval_count, got.done_reason) == (4, "length")
    got = client.generate("fake", "x" * 4086, raw=True, options={"temperature": 0})
    assert (got.eval_count or 99) <= 10  # to the end of the context


def test_seeds(client: ollama.Client) -> None:
    def draw(seed: int) -> str | None:
        options = {"temperature": 1, "num_predict": 20, "seed": seed}
        return client.generate("fake", "Hi", raw=True, options=options).response

    assert draw(1) == draw(1) != draw(2)
    assert draw(-1) != draw(-1)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: ollama.Client, stream: bool) -> None:
    generate: Any = client.generate  # its types have no bool for stream
    got = generate("fake", "Hi", raw=True, options=greedy(3), logprobs=True, top_logprobs=2, stream=stream)
    known = [each for part in (got if stream else [got]) for each in part.logprobs or []]
    assert [each.token for each in known] == [text_of([each]) for each in tokens_after([72, 105], 3)]
    assert [each.logprob for each in known] == [-0.5] * 3
    assert [[top.logprob for top in each.top_logprobs or []] for each in known] == [[-0.5, -1.5]] * 3


def test_the_model_is_told(client: ollama.Client, server: Any) -> None:
    (model,) = client.list().models
    assert model.model == "fake" and model.size and model.digest and model.modified_at
    (running,) = client.ps().models
    assert running.name == "fake" and running.context_length == 4096
    shown = client.show("fake")
    assert shown.capabilities == ["completion"] and "<|im_start|>" in (shown.template or "")
    assert shown.modelinfo == {"general.architecture": "", "general.context_length": 4096}
    assert httpx.head(server.url).status_code == 200
    assert httpx.get(server.url + "/api/version").json()["version"].count(".") == 2


def test_loading_is_no_generation(client: ollama.Client) -> None:
    assert client.generate("fake", keep_alive=0).done_reason == "load"
    assert client.chat("fake").done_reason == "load"


def test_errors_have_ollamas_form(client: ollama.Client, server: Any) -> None:
    with pytest.raises(ollama.ResponseError, match='model is "other"; this server serves "fake"') as caught:
        client.chat("other", HI)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="4096"):  # by the engine, before a stream begins
        list(client.generate("fake", "x" * 5000, raw=True, stream=True))
    answer = httpx.post(server.url + "/api/chat", content=b"{")
    assert answer.status_code == 400 and list(answer.json()) == ["error"]
    assert httpx.post(server.url + "/api/pull", json={}).json() == {
        "error": "there is no route POST /api/pull"
    }


# Over a script


def post(llm: ScriptedLLM, path: str = "/api/chat", **body: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with llm.http() as http:
            fields = {"messages": HI, **body} if path == "/api/chat" else {"prompt": "Hi", **body}
            return await http.post(path, json=fields)

    return asyncio.run(run())


def told(llm: ScriptedLLM, stream: bool, path: str = "/api/chat", **body: Any) -> dict[str, Any]:
    """The answer, whole or put together from a stream's lines."""
    answer = post(llm, path, stream=stream, **body)
    assert answer.status_code == 200, answer.text
    lines = [json.loads(line) for line in answer.text.splitlines()]
    whole: dict[str, Any] = {}
    for line in lines:
        for name, value in (line["message"] if path == "/api/chat" else line).items():
            if name in ("content", "thinking", "response", "tool_calls"):
                whole[name] = whole[name] + value if name in whole else value
    return {**whole, "done_reason": lines[-1]["done_reason"]}


@pytest.mark.parametrize("stream", [False, True])
def test_tools(stream: bool) -> None:
    llm = ScriptedLLM(TEMPLATE, CALLS)
    got = told(llm, stream, tools=TOOLS)
    assert got["content"] == "I look." and got["done_reason"] == "stop"
    functions = [call["function"] for call in got["tool_calls"]]
    assert functions == [
        {"index": 0, "name": "get_weather", "arguments": json.loads(ARGUMENTS[0])},
        {"index": 1, "name": "now", "arguments": {}},
    ]
    assert f"TOOLS {json.dumps(TOOLS)}" in llm.prompts[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_breaks_off_is_text(stream: bool) -> None:
    script = '<tool_call>{"name": "get_weather", "arguments": {"city": "Kö'
    assert told(ScriptedLLM(TEMPLATE, script), stream, tools=TOOLS)["content"] == '{"city": "Kö'


@pytest.mark.parametrize("stream", [False, True])
def test_thinking(stream: bool) -> None:
    llm = ScriptedLLM(SWITCHED, "<think>hm</think>Yes")
    got = told(llm, stream, think=True)
    assert (got["thinking"], got["content"]) == ("hm", "Yes") and "think True|" in llm.prompts[-1]
    got = told(llm, stream, "/api/generate", think=False)
    assert (got["thinking"], got["response"]) == ("hm", "Yes") and "think False|" in llm.prompts[-1]
    told(llm, stream, think="low")
    assert "effort low|" in llm.prompts[-1]


def test_what_messages_become() -> None:
    llm = ScriptedLLM(THINKS, "Fine.")
    call = {"function": {"index": 0, "name": "now", "arguments": {"zone": "UTC"}}}
    messages = [
        *HI,
        {"role": "assistant", "content": "I look.", "thinking": "look", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_name": "now"},
    ]
    told(llm, False, messages=messages)
    assert llm.prompts[0] == (
        'user: Hi|assistant thought look: I look.<tool_call>now {"zone": "UTC"}|tool: noon|assistant: '
    )


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_formats_are_grammars(path: str) -> None:
    def asked(template: str, format: object) -> object:
        llm = ScriptedLLM(template, '<think>hm</think>{"a": "<think>"}')
        got = told(llm, False, path, format=format)
        assert got.get("thinking") == ("hm" if template == THINKS else None)
        return llm.calls[0][1].grammar

    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    for template, thinking in ((TEMPLATE, None), (THINKS, Thinking("<think>", "</think>"))):
        assert asked(template, "json") == GrammarSpec("json_object", "", thinking)
        assert asked(template, schema) == GrammarSpec("json_schema", json.dumps(schema), thinking)


def test_an_answer_goes_on() -> None:
    llm = ScriptedLLM(TEMPLATE, " not.")
    got = told(llm, False, messages=[*HI, {"role": "assistant", "content": "I would"}])
    assert llm.prompts[-1] == "user: Hi|assistant: I would" and got["content"] == " not."


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/chat", {"messages": [{"role": "user", "images": ["aGk="]}]}, "messages[0].images"),
        ("/api/chat", {"messages": [{"role": "developer"}]}, "messages[0].role"),
        ("/api/chat", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
        ("/api/chat", {"think": False}, "think is false; fake reasons always"),
        ("/api/chat", {"options": {"temperature": -1}}, "options.temperature is -1"),
        ("/api/chat", {"options": {"num_predict": 0}}, "options.num_predict is 0"),
        ("/api/chat", {"options": {"num_predict": -3}}, "options.num_predict is -3"),
        ("/api/chat", {"options": {"num_predict": 10**30}}, "options.num_predict is 1000"),
        ("/api/chat", {"options": {"repeat_penalty": 9}}, "options.repeat_penalty is 9"),
        ("/api/chat", {"options": {"repeat_last_n": 64}}, "options.repeat_last_n is 64"),
        ("/api/chat", {"options": {"mirostat": 1}}, "options.mirostat is 1"),
        ("/api/chat", {"options": {"num_ctx": 8192}}, "options.num_ctx is 8192"),
        ("/api/chat", {"options": {"num_ctx": 4}}, "options.num_ctx is 4"),
        ("/api/chat", {"options": {"frobnicate": 1}}, "options.frobnicate"),
        ("/api/chat", {"format": "yaml"}, "format"),
        ("/api/chat", {"top_logprobs": 2}, "top_logprobs"),
        ("/api/generate", {"template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"suffix": "x"}, "suffix"),
        ("/api/generate", {"context": [1, 2]}, "context"),
        ("/api/generate", {"images": ["aGk="]}, "images"),
        ("/api/generate", {"raw": True, "system": "x"}, "system"),
        ("/api/generate", {"raw": True, "think": True}, "think"),
    ],
)
def test_refusals(path: str, body: dict[str, Any], field: str) -> None:
    answer = post(ScriptedLLM(THINKS, "Hi"), path, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith(field)


def test_options_without_effect() -> None:
    options = {"num_gpu": 1, "num_thread": 4, "num_keep": 5, "mirostat_tau": 5.0, "penalize_newline": True}
    assert told(ScriptedLLM(TEMPLATE, "Hi"), False, options=options, keep_alive="5m")["content"] == "Hi"


def test_facts_of_files(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((1000, 20), np.float32))
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    facts = facts_of(str(path))
    assert (facts.format, facts.family, facts.size) == ("gguf", "llama", path.stat().st_size)
    assert details(facts)["parameter_size"] == "0.02M" and details(facts)["quantization_level"] == "Q8_0"
    folder = facts_of(str(tmp_path))
    assert (folder.format, folder.family) == ("safetensors", "qwen3") and folder.size > path.stat().st_size
