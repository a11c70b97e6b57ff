"""/v1/messages by Anthropic's own client: over a real server, and over an engine whose answer is a script."""

import asyncio
import json
from typing import Any

import anthropic
import httpx
import httpx2
import pytest

from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.engine.grammar.grammar import GrammarSpec, Thinking
from tests.engine.server.scripted import ScriptedLLM
from tests.engine.server.test_chat_tools import ARGUMENTS, CALLS, TEMPLATE, THINKS
from tests.engine.server.test_openai_client import VOCAB, chat_prompt, text_of

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: list[Any] = [
    {"name": "get_weather", "description": "Weather of a city", "input_schema": SCHEMA},
    {"name": "now", "input_schema": {"type": "object"}},
]
GREEDY = {"temperature": 0}  # the newest client has no argument for it
HI: list[Any] = [{"role": "user", "content": "Hi"}]
SWITCHED = THINKS + "{% if enable_thinking is defined %}think {{ enable_thinking }}|{% endif %}"


# Over the fake model: its tokens are computed by hand


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def until_end(prompt: list[int], count: int) -> tuple[str, bool]:
    """What the fake model answers within `count` tokens, and whether it ended by itself."""
    tokens = expected_tokens(prompt, count, VOCAB)
    ended = 258 in tokens
    return text_of(tokens[: tokens.index(258)] if ended else tokens), ended


def test_whole_answer(client: Any) -> None:
    got = client.messages.create(
        model="fake", max_tokens=9, extra_body=GREEDY, system="Be brief.", messages=[*HI]
    )
    prompt = chat_prompt(("system", "Be brief."), ("user", "Hi"))
    text, ended = until_end(prompt, 9)
    assert [(block.type, block.text) for block in got.content] == [("text", text)]
    assert got.stop_reason == ("end_turn" if ended else "max_tokens") and got.stop_sequence is None
    assert got.id.startswith("msg_") and (got.type, got.role, got.model) == ("message", "assistant", "fake")
    assert got.usage.input_tokens + got.usage.cache_read_input_tokens == len(prompt)


def test_models(client: Any) -> None:
    (model,) = client.models.list()
    assert (model.id, model.type, model.display_name) == ("fake", "model", "fake")
    assert client.models.retrieve("fake") == model


def test_stream_is_the_whole_answer(client: Any) -> None:
    fields: dict[str, Any] = {"model": "fake", "max_tokens": 40, "extra_body": GREEDY, "messages": HI}
    whole = client.messages.create(**fields)
    with client.messages.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"


def test_cached_tokens_are_told_apart(client: Any) -> None:
    messages = [{"role": "user", "content": "tell me again " * 20}]
    for _ in range(2):
        got = client.messages.create(model="fake", max_tokens=1, messages=messages)
    size = client.messages.count_tokens(model="fake", messages=messages).input_tokens
    assert got.usage.cache_read_input_tokens >= size - 16 - 1
    assert got.usage.cache_read_input_tokens + got.usage.input_tokens == size


def test_stop_sequence(client: Any) -> None:
    whole, _ = until_end(chat_prompt(("user", "Hi")), 60)
    stop = next(whole[k : k + 2] for k in range(3, len(whole)) if whole[k : k + 2].isascii())
    got = client.messages.create(
        model="fake", max_tokens=60, extra_body=GREEDY, messages=HI, stop_sequences=[stop]
    )
    assert (got.stop_reason, got.stop_sequence) == ("stop_sequence", stop)
    assert got.content[0].text == whole[: whole.index(stop)]


def test_the_context_is_full(client: Any) -> None:
    got = client.messages.create(
        model="fake", max_tokens=4000, extra_body=GREEDY, messages=[{"role": "user", "content": "x" * 4065}]
    )
    assert got.stop_reason == "model_context_window_exceeded" and got.usage.output_tokens < 20


def test_errors_have_anthropics_form(server: Any, client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="other", max_tokens=1, messages=HI)
    assert missing.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": 'model is "other"; this server serves "fake"'},
    }
    with pytest.raises(anthropic.BadRequestError, match="max_tokens is 0"):
        client.messages.create(model="fake", max_tokens=0, messages=HI)
    with pytest.raises(anthropic.BadRequestError, match="4096"):  # by the engine, before a stream begins
        client.messages.create(
            model="fake", max_tokens=1, messages=[{"role": "user", "content": "x" * 5000}], stream=True
        )
    answer = httpx.post(server.url + "/v1/messages", content=b"{")
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    answer = httpx.post(server.url + "/v1/messages", content=b"x" * 200_000)
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "request_too_large"
    assert httpx.get(server.url + "/v1/messages").json()["type"] == "error"  # 405
    assert httpx.get(server.url + "/v1/messages/batches").json()["error"]["type"] == "not_found_error"


# Over a script


def ask(llm: ScriptedLLM, messages: list[Any] = HI, stream: bool = False, **body: Any) -> Any:
    """The whole answer, or what the client makes of a stream."""

    async def run() -> Any:
        transport: Any = httpx2.ASGITransport(llm.app())
        http = httpx2.AsyncClient(transport=transport)
        async with anthropic.AsyncAnthropic(
            base_url="http://test", api_key="none", max_retries=0, http_client=http
        ) as client:
            fields: dict[str, Any] = {"max_tokens": 1000, "model": "fake", "messages": messages, **body}
            if not stream:
                return await client.messages.create(**fields)
            async with client.messages.stream(**fields) as events:
                return await events.get_final_message()

    return asyncio.run(run())


def post(llm: ScriptedLLM, **body: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with llm.http() as http:
            return await http.post("/v1/messages", json={"max_tokens": 1000, "messages": HI, **body})

    return asyncio.run(run())


def events_of(text: str) -> list[dict[str, Any]]:
    """The events, each checked to be named by its type."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_tools(stream: bool) -> None:
    llm = ScriptedLLM(TEMPLATE, CALLS)
    got = ask(llm, stream=stream, tools=TOOLS)
    assert [block.type for block in got.content] == ["text", "tool_use", "tool_use"]
    assert got.content[0].text == "I look." and got.stop_reason == "tool_use"
    assert [block.name for block in got.content[1:]] == ["get_weather", "now"]
    assert [block.input for block in got.content[1:]] == [json.loads(each) for each in ARGUMENTS]
    assert got.content[1].id != got.content[2].id
    openais = [{"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA}]
    assert f'TOOLS [{{"type": "function", "function": {json.dumps(openais[0])}}}' in llm.prompts[0]


def test_one_call_at_a_time_and_none() -> None:
    llm = ScriptedLLM(TEMPLATE, CALLS)
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(ask(llm, tools=TOOLS, tool_choice=choice).content) == 2
    none = ask(llm, tools=TOOLS, tool_choice={"type": "none"})
    assert [block.text for block in none.content] == [CALLS] and "TOOLS" not in llm.prompts[-1]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "now"}], ids=str)
def test_a_call_that_must_be_made(choice: dict[str, str]) -> None:
    llm = ScriptedLLM(TEMPLATE, '[{"name": "now", "arguments": {}}]')
    got = ask(llm, tools=TOOLS, tool_choice=choice)
    assert [(block.type, block.name, block.input) for block in got.content] == [("tool_use", "now", {})]
    assert got.stop_reason == "tool_use"
    ((_, params, *_),) = llm.calls
    assert '"now"' in params.grammar.text and ("get_weather" in params.grammar.text) == (
        choice["type"] == "any"
    )


def test_the_events_of_a_stream() -> None:
    script = '<think>hm</think>Ok <tool_call>{"name": "now", "arguments": {}}</tool_call>'
    events = events_of(post(ScriptedLLM(THINKS, script), tools=TOOLS, stream=True).text)
    shape = [(each["type"], each.get("index")) for each in events]
    assert shape[:2] == [("message_start", None), ("ping", None)]
    inner = [each for each, after in zip(shape[2:-2], shape[3:], strict=False) if each != after]
    assert inner == [
        (f"content_block_{part}", index) for index in range(3) for part in ("start", "delta", "stop")
    ]
    assert shape[-2:] == [("message_delta", None), ("message_stop", None)]
    starts = [each["content_block"] for each in events if each["type"] == "content_block_start"]
    assert starts[:2] == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
    ]
    assert starts[2].pop("id") and starts[2] == {"type": "tool_use", "name": "now", "input": {}}
    deltas: dict[tuple[int, str], str] = {}
    for each in (each for each in events if each["type"] == "content_block_delta"):
        kind = each["delta"].pop("type")
        (text,) = each["delta"].values()
        deltas[each["index"], kind] = deltas.get((each["index"], kind), "") + text
    assert deltas == {(0, "thinking_delta"): "hm", (1, "text_delta"): "Ok", (2, "input_json_delta"): "{}"}
    message = events[0]["message"]
    assert message["usage"]["input_tokens"] > 0
    assert message["content"] == [] and message["stop_reason"] is None
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len(script.encode()) + 1


def test_a_call_that_breaks_off_is_text() -> None:
    script = '<tool_call>{"name": "get_weather", "arguments": {"city": "Kö'
    got = ask(ScriptedLLM(TEMPLATE, script), tools=TOOLS)
    assert [(block.type, block.text) for block in got.content] == [("text", '{"city": "Kö')]
    assert got.stop_reason == "end_turn"


def test_what_messages_become() -> None:
    llm = ScriptedLLM(THINKS, "Fine.")
    cached = {"cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "user", "content": [{"type": "text", "text": "In Bonn.", **cached}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "look", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Bonn"}},
                {"type": "tool_use", "id": "b", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "sun"}]},
                {"type": "tool_result", "tool_use_id": "b", "content": "broken", "is_error": True},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    ask(llm, messages, system=[{"type": "text", "text": "A"}, {"type": "text", "text": "B", **cached}])
    assert llm.prompts[0].removesuffix("assistant: ") == (
        "system: A\nB|user: Weather?\nIn Bonn.|"
        'assistant thought look: I look.<tool_call>get_weather {"city": "Bonn"}<tool_call>now {}|'
        "tool: sun|tool: Error: broken|user: Well?|"
    )


@pytest.mark.parametrize("content", ["I would", [{"type": "text", "text": "I would"}]])
def test_an_answer_goes_on(content: Any) -> None:
    llm = ScriptedLLM(TEMPLATE, " not.")
    got = ask(llm, [*HI, {"role": "assistant", "content": content}])
    assert llm.prompts[-1] == "user: Hi|assistant: I would" and got.content[0].text == " not."


def test_thinking_is_switched() -> None:
    llm = ScriptedLLM(SWITCHED, "<think>hm</think>Yes")
    got = ask(llm, thinking={"type": "adaptive"})
    assert [block.type for block in got.content] == ["thinking", "text"]
    assert (got.content[0].thinking, got.content[1].text) == ("hm", "Yes")
    assert "think True|" in llm.prompts[-1]
    ask(llm, thinking={"type": "disabled"})
    assert "think False|" in llm.prompts[-1]
    ask(llm)
    assert "think " not in llm.prompts[-1]
    budget = ScriptedLLM(SWITCHED + "{{ thinking_budget }}", "Yes")
    ask(budget, thinking={"type": "enabled", "budget_tokens": 2048})
    assert "2048" in budget.prompts[-1]
    ask(llm, thinking={"type": "enabled", "budget_tokens": 2048})
    for asked in (budget, llm):
        spec = asked.calls[-1][1].grammar
        assert (spec.kind, spec.thinking) == ("text", Thinking("<think>", "</think>", "", 2048))
    ask(llm, output_config={"effort": "high"})
    assert "effort high|" in llm.prompts[-1]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
RESULT = {"type": "tool_result", "tool_use_id": "a"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [*HI, {"role": "system", "content": []}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, 'messages[0].content[0].type is "image"'),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": []}, "messages"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema is missing"),
        ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"type": "bash_20250124", "name": "bash", "input_schema": {}}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, 'tool_choice.type is "any"'),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "f"}}, 'tool_choice.name is "f"'),
        ({"tools": TOOLS, "tool_choice": {"type": "auto", "name": "now"}}, "tool_choice.name"),
        ({"thinking": {"type": "adaptive"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is null"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config.format.type"),
        (
            {"output_config": {"format": {"type": "json_schema", "strict": True}}},
            "output_config.format.strict",
        ),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"frobnicate": 1}, "frobnicate"),
    ],
)
def test_refusals(body: dict[str, Any], field: str) -> None:
    answer = post(ScriptedLLM(TEMPLATE, "Hi"), **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith(field)


def test_a_format_is_a_grammar() -> None:
    llm = ScriptedLLM(TEMPLATE, "{}")
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    ask(llm, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert llm.calls[0][1].grammar == GrammarSpec("json_schema", json.dumps(schema))


def test_thinking_refusals() -> None:
    always = ScriptedLLM(THINKS, "Hi")
    assert "thinking.type" in post(always, thinking={"type": "disabled"}).json()["error"]["message"]
    for llm, kind in ((always, "adaptive"), (ScriptedLLM(TEMPLATE, "Hi"), "enabled")):
        answer = post(llm, thinking={"type": kind, "budget_tokens": 2048})
        assert answer.json()["error"]["message"].startswith("thinking.")
    plain = ScriptedLLM("{{ messages[0].content }}", "Hi")
    answer = post(plain, output_config={"effort": "low"}).json()["error"]
    assert answer["message"].startswith("output_config.effort")
    assert post(plain, thinking={"type": "disabled"}).status_code == 200
    assert "takes no tools" in post(plain, tools=TOOLS).json()["error"]["message"]
