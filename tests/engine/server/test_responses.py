"""The Responses API by OpenAI's client: against a real server, and with calls and reasoning from a script."""

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest

from radixmesh.engine.server.errors import ResponseNotFoundError
from radixmesh.engine.server.keys import Key
from radixmesh.engine.server.responses_api.answer import Answer
from radixmesh.engine.server.responses_api.protocol import ResponseBody
from radixmesh.engine.server.responses_api.store import Kept, ResponseStore
from tests.engine.server.scripted import ScriptedLLM
from tests.engine.server.test_chat_tools import ARGUMENTS, CALLS, THINKS
from tests.engine.server.test_openai_client import chat_prompt, text_of, tokens_after

FAKE: dict[str, Any] = {"model": "fake", "temperature": 0, "extra_body": {"ignore_eos": True}}
TOOLS: list[Any] = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": False,
    },
    {"type": "function", "name": "now", "parameters": None, "strict": False},
]


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def expected(count: int, *messages: tuple[str, str]) -> str:
    return text_of(tokens_after(chat_prompt(*messages), count))


def test_create_and_retrieve(client: Any) -> None:
    got = client.responses.create(
        input="Hi", instructions="Be brief.", max_output_tokens=12, metadata={"topic": "greeting"}, **FAKE
    )
    assert got.output_text == expected(12, ("system", "Be brief."), ("user", "Hi"))
    assert got.status == "incomplete" and got.incomplete_details.reason == "max_output_tokens"
    assert got.instructions == "Be brief." and got.metadata == {"topic": "greeting"}
    prompt = len(chat_prompt(("system", "Be brief."), ("user", "Hi")))
    assert (got.usage.input_tokens, got.usage.output_tokens, got.usage.total_tokens) == (
        prompt,
        12,
        prompt + 12,
    )
    assert client.responses.retrieve(got.id) == got
    client.responses.delete(got.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.retrieve(got.id)
    assert caught.value.code == "response_not_found"


def test_items_as_input(client: Any) -> None:
    items: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Ho", "annotations": []}]},
        {"role": "user", "content": "there"},
    ]
    got = client.responses.create(input=items, max_output_tokens=9, store=False, **FAKE)
    turns = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), ("user", "there"))
    assert got.output_text == expected(9, *turns)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(got.id)


def test_a_response_goes_on_from_another(client: Any) -> None:
    first = client.responses.create(input="Hi", instructions="Be brief.", max_output_tokens=9, **FAKE)
    second = client.responses.create(input="More", previous_response_id=first.id, max_output_tokens=9, **FAKE)
    # Instructions are of one response alone.
    turns = (("user", "Hi"), ("assistant", first.output_text), ("user", "More"))
    assert second.output_text == expected(9, *turns)
    third = client.responses.create(input="?", previous_response_id=second.id, max_output_tokens=9, **FAKE)
    assert third.output_text == expected(9, *turns, ("assistant", second.output_text), ("user", "?"))
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input="?", previous_response_id="resp_none", **FAKE)
    assert caught.value.param == "previous_response_id"


def test_stream(client: Any) -> None:
    with client.responses.stream(input="Hi", max_output_tokens=12, **FAKE) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-4].text == events[-1].response.output_text == expected(12, ("user", "Hi"))
    assert client.responses.retrieve(events[0].response.id) == events[-1].response


def test_logprobs(client: Any) -> None:
    got = client.responses.create(
        input="p", max_output_tokens=8, include=["message.output_text.logprobs"], top_logprobs=2, **FAKE
    )
    entries = got.output[0].content[0].logprobs
    assert bytes(entries[0].bytes) == bytes([tokens_after(chat_prompt(("user", "p")), 1)[0]])
    assert [entry.logprob for entry in entries] == [-0.5] * 8
    assert all([top.logprob for top in entry.top_logprobs] == [-0.5, -1.5] for entry in entries)


def test_in_the_background(client: Any) -> None:
    got = client.responses.create(input="Hi", max_output_tokens=12, background=True, **FAKE)
    assert got.status in ("queued", "in_progress") and not got.output
    deadline = time.monotonic() + 30
    while got.status in ("queued", "in_progress") and time.monotonic() < deadline:
        got = client.responses.retrieve(got.id)
    assert got.status == "incomplete" and got.output_text == expected(12, ("user", "Hi"))
    assert client.responses.cancel(got.id) == got  # nothing is left to cancel
    waited_for = client.responses.create(input="Hi", max_output_tokens=1, **FAKE)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(waited_for.id)


def test_cancel(start: Any) -> None:
    slow = start(config={"context_length": 100_000})
    with openai.OpenAI(base_url=slow.url + "/v1", api_key="none", max_retries=0) as client:
        made = [client.responses.create(input="Hi", background=True, **FAKE) for _ in range(2)]
        cancelled = client.responses.cancel(made[0].id)
        assert cancelled.status == "cancelled"
        assert client.responses.retrieve(made[0].id).status == "cancelled"
        client.responses.delete(made[1].id)
        deadline = time.monotonic() + 10
        while slow.stats()["num_running"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert slow.stats()["num_running"] == 0  # neither goes on
    slow.end()


def test_a_stream_in_the_background_is_followed_again_from_anywhere(start: Any) -> None:
    slow = start(config={"context_length": 100_000})
    with openai.OpenAI(base_url=slow.url + "/v1", api_key="none", max_retries=0) as client:
        asked = {"input": "Hi", "background": True, "stream": True, **FAKE}
        with client.responses.create(max_output_tokens=3_000, **asked) as stream:
            told = [next(stream) for _ in range(20)]
        id = told[0].response.id  # whose first reader has left it
        told += client.responses.retrieve(id, stream=True, starting_after=told[-1].sequence_number)
        assert [each.sequence_number for each in told] == list(range(len(told)))
        text = "".join(each.delta for each in told if each.type == "response.output_text.delta")
        assert text == told[-1].response.output_text == expected(3_000, ("user", "Hi"))
        assert list(client.responses.retrieve(id, stream=True)) == told
        for number in (len(told) - 1, len(told) + 7):
            assert not list(client.responses.retrieve(id, stream=True, starting_after=number))

        endless = client.responses.create(**asked)
        id = next(endless).response.id
        client.responses.cancel(id)
        *_, last = endless  # what was told before it ends is still there
        assert last.type == "response.incomplete" and last.response.status == "cancelled"
    slow.end()


def test_only_events_that_are_kept_can_be_told_again(client: Any) -> None:
    asked: dict[str, Any] = {"input": "Hi", "max_output_tokens": 1, **FAKE}
    for mode in ({}, {"background": True}):
        made = client.responses.create(**asked, **mode)
        with pytest.raises(openai.BadRequestError, match="background and stream") as caught:
            client.responses.retrieve(made.id, stream=True)
        assert caught.value.param == "stream"


def test_input_items(client: Any) -> None:
    given: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "mine", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "Ho"},
    ]
    asked: dict[str, Any] = {"max_output_tokens": 3, **FAKE}
    first = client.responses.create(input=given, **asked)
    second = client.responses.create(input="More", previous_response_id=first.id, **asked)
    items = client.responses.input_items.list(second.id, order="asc").data
    assert [each.type for each in items] == ["message"] * 2 + ["reasoning"] + ["message"] * 3
    texts = [each.content[0].text for each in items]
    assert texts == ["Be brief.", "Hi", "hm", "Ho", first.output_text, "More"]
    kinds = ["input_text", "input_text", "reasoning_text", "output_text", "output_text", "input_text"]
    assert [each.content[0].type for each in items] == kinds
    assert items[4].id == first.output[0].id
    assert len({each.id for each in items}) == len(items)
    assert list(client.responses.input_items.list(second.id)) == items[::-1]  # the newest first
    for order, expected_order in (("asc", items), ("desc", items[::-1])):
        page = client.responses.input_items.list(second.id, order=order, limit=2)
        assert page.data == expected_order[:2] and page.has_more
        assert (page.first_id, page.last_id) == (page.data[0].id, page.data[1].id)
        assert list(page) == expected_order  # the client asks for page after page
    page = client.responses.input_items.list(second.id, after=items[0].id)
    assert not page.data and not page.has_more and page.first_id is page.last_id is None


def test_calls_in_input_items() -> None:
    llm = ScriptedLLM(THINKS, "a")
    call = {"type": "function_call", "call_id": "call_0", "name": "now", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_0", "output": "noon", "id": None}
    given: list[Any] = [call, output]

    async def run() -> Any:
        async with llm.client() as client:
            made = await client.responses.create(model="fake", input=given)
            return (await client.responses.input_items.list(made.id, order="asc")).data

    made, brought = asyncio.run(run())
    assert made.id.startswith("fc_") and made.name == "now" and made.arguments == "{}"
    assert brought.id.startswith("fco_") and (brought.call_id, brought.output) == ("call_0", "noon")


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("", "stream=maybe", "stream"),
        ("", "starting_after=3", "starting_after"),
        ("", "stream=true&starting_after=-1", "starting_after"),
        ("", "include=reasoning.encrypted_content", "include"),
        ("", "frobnicate=1", "frobnicate"),
        ("/input_items", "limit=0", "limit"),
        ("/input_items", "limit=101", "limit"),
        ("/input_items", "limit=ten", "limit"),
        ("/input_items", "limit=1&limit=2", "limit"),
        ("/input_items", "order=down", "order"),
        ("/input_items", "after=msg_none", "after"),
        ("/input_items", "before=msg_none", "before"),
        ("/input_items", "include=x", "include"),
    ],
)
def test_queries_are_honoured_or_refused(client: Any, server: Any, path: str, query: str, field: str) -> None:
    id = client.responses.create(input="Hi", max_output_tokens=1, **FAKE).id
    url = f"{server.url}/v1/responses/{id}{path}"
    assert httpx.get(f"{url}?include_obfuscation=false").status_code == (400 if path else 200)
    got = httpx.get(f"{url}?{query}")
    error = got.json()["error"]
    assert got.status_code == 400 and error["param"] == field and field in error["message"]
    assert httpx.get(url.replace(id, "resp_none")).status_code == 404


def ask(llm: ScriptedLLM, **body: Any) -> Any:
    """The whole response; with stream=True its events and what the client's own accumulator made of them."""

    async def run() -> Any:
        async with llm.client(reasoning_parser="qwen3") as client:
            if not body.pop("stream", False):
                return await client.responses.create(model="fake", **body)
            async with client.responses.stream(model="fake", **body) as stream:
                return [event async for event in stream], await stream.get_final_response()

    return asyncio.run(run())


def test_calls_and_reasoning() -> None:
    got = ask(ScriptedLLM(THINKS, f"<think>So.</think>{CALLS}"), input="Hi", tools=TOOLS)
    reasoning, message, *calls = got.output
    assert got.status == "completed" and got.completed_at >= got.created_at
    assert reasoning.type == "reasoning" and reasoning.content[0].text == "So."
    assert message.content[0].text == "I look." == got.output_text
    assert [call.name for call in calls] == ["get_weather", "now"]
    assert [call.arguments for call in calls] == ARGUMENTS
    assert all(call.type == "function_call" and call.call_id.startswith("call_") for call in calls)
    assert 0 < got.usage.output_tokens_details.reasoning_tokens < got.usage.output_tokens
    (alone,) = ask(ScriptedLLM(THINKS, CALLS), input="Hi", tools=TOOLS, parallel_tool_calls=False).output[1:]
    assert alone.name == "get_weather"


def test_calls_and_reasoning_streamed() -> None:
    script = f"<think>So.</think>{CALLS}"
    events, final = ask(ScriptedLLM(THINKS, script), input="Hi", tools=TOOLS, stream=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = {kind: "" for kind in ("reasoning_text", "output_text", "function_call_arguments")}
    for event in events:
        for kind in text:
            if event.type == f"response.{kind}.delta":
                text[kind] += event.delta
    assert list(text.values()) == ["So.", "I look.", "".join(ARGUMENTS)]
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [(event.name, event.arguments) for event in done] == list(
        zip(["get_weather", "now"], ARGUMENTS, strict=True)
    )
    assert [event.output_index for event in events if event.type == "response.output_item.done"] == [
        0,
        1,
        2,
        3,
    ]
    assert events[-1].type == "response.completed"
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_of_a_schema(client: Any, stream: bool) -> None:
    schema = {"type": "object", "properties": {"of": {"enum": ["tea", "milk"]}}, "required": ["of"]}
    format = {"type": "json_schema", "name": "cup", "schema": schema | {"additionalProperties": False}}
    asked: dict[str, Any] = {"input": "Hi", "text": {"format": format}, "max_output_tokens": 200}
    if stream:
        with client.responses.stream(**asked, **FAKE) as events:
            for _ in events:
                pass
            got = events.get_final_response()
    else:
        got = client.responses.create(**asked, **FAKE)
    assert json.loads(got.output_text)["of"] in ("tea", "milk")
    assert got.status == "completed" and got.text.format.name == "cup"
    client.responses.delete(got.id)


def test_a_text_of_a_schema_that_is_none(client: Any) -> None:
    format = {"type": "json_schema", "name": "x", "schema": {"type": "objekt"}}
    with pytest.raises(openai.BadRequestError, match="objekt") as caught:
        client.responses.create(input="Hi", text={"format": format}, **FAKE)
    assert caught.value.param == "text.format"


def test_what_the_model_wrote_goes_back_as_one_message() -> None:
    llm = ScriptedLLM(THINKS, f"<think>So.</think>{CALLS}")
    output = ask(llm, input="Hi", tools=TOOLS).output
    items = [{"role": "user", "content": "Hi"}, *(item.to_dict() for item in output)]
    items += [{"type": "function_call_output", "call_id": output[2].call_id, "output": "rain"}]
    ask(llm, input=items, tools=TOOLS)
    weather = f"<tool_call>get_weather {json.dumps(json.loads(ARGUMENTS[0]), ensure_ascii=False)}"
    assert (
        f"user: Hi|assistant thought So.: I look.{weather}<tool_call>now {{}}|tool: rain|" in llm.prompts[1]
    )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
        ({"tools": [TOOLS[1], TOOLS[1]]}, "tools[1].name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "none"}}, "tool_choice.name"),
        ({"tools": [{**TOOLS[1], "strict": "yes"}]}, "tools[0].strict"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{**TOOLS[1], "type": "function_call", "call_id": "1"}]}, "input[0].parameters"),
        ({"background": True, "store": False}, "background"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"input": []}, "input"),
    ],
    ids=str,
)
def test_what_is_refused_is_named(body: dict[str, Any], field: str) -> None:
    llm = ScriptedLLM(THINKS, "a")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(llm, **{"input": "Hi", **body})
    assert caught.value.param == field and not llm.calls


def kept(id: str, text: str = "", owner: Key | None = None, status: str = "completed") -> Kept:
    answer = Answer(id, ResponseBody(input="a"), "fake")
    answer.response["status"] = status
    return Kept(answer, owner, [{"role": "user", "content": text}])


def test_the_store_is_bounded() -> None:
    store = ResponseStore(max_count=3, max_bytes=20_000)
    store.keep(kept("running", status="in_progress"))
    for name in "abc":
        store.keep(kept(name))
    with pytest.raises(ResponseNotFoundError):
        store.find("a", None)  # the oldest finished one went
    assert store.find("running", None) and store.find("b", None) and store.find("c", None)
    store.keep(kept("big", "x" * 18_500))
    assert store.find("big", None) and store.find("running", None)
    for name in "bc":
        with pytest.raises(ResponseNotFoundError):
            store.find(name, None)
    store.delete("big", None)
    store.keep(kept("big", "x" * 15_000))  # its place is free again
    grown = store.find("running", None)
    grown.items.append({"content": "x" * 6_000})
    grown.answer.response["status"] = "completed"
    store.resize(grown)
    with pytest.raises(ResponseNotFoundError):
        store.find("running", None)


def test_a_response_is_its_callers_alone() -> None:
    store = ResponseStore()
    mine, other = Key("mine", b"1", False), Key("other", b"2", False)
    store.keep(kept("a", owner=mine))
    assert store.find("a", mine)
    for caller in (other, None):
        with pytest.raises(ResponseNotFoundError):
            store.find("a", caller)
