"""Tools and reasoning over HTTP, by OpenAI's client; what the model writes is a script."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, get_args

import openai
import pytest

from radixmesh.engine.errors import ConfigError
from radixmesh.engine.grammar.grammar import Thinking
from radixmesh.engine.server.formats import choose_formats
from radixmesh.engine.server.options import ReasoningParser, ServerOptions, ToolCallParser
from radixmesh.engine.text.reasoning.registry import REASONING_FORMATS
from radixmesh.engine.text.tools.registry import TOOL_FORMATS
from tests.engine.server.scripted import ScriptedLLM

# Qwen's manner, in few words.
TEMPLATE = """
{%- if tools %}TOOLS {{ tools | tojson }} as {"arguments": <args-json-object>}|{% endif %}
{%- for message in messages %}{{ message.role }}
{%- if message.reasoning_content %} thought {{ message.reasoning_content }}{% endif %}
{{- ': ' ~ (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' ~ call.function.name ~ ' ' ~ call.function.arguments | tojson }}
{%- endfor %}|{% endfor %}
{%- if reasoning_effort is defined %}effort {{ reasoning_effort }}|{% endif %}
{{- 'assistant: ' ~ (opening or '') }}"""
THINKS = TEMPLATE + "{# </think> #}"

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
CALLS = (
    'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln 🌍 \\"}{"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
ARGUMENTS = ['{"city": "Köln 🌍 \\"}{"}', "{}"]
HI: list[Any] = [{"role": "user", "content": "Hi"}]


def ask(
    llm: ScriptedLLM, messages: list[Any] = HI, options: dict[str, Any] | None = None, **body: Any
) -> Any:
    """The whole answer, or the list of chunks with stream=True."""

    async def run() -> Any:
        async with llm.client(**(options or {})) as client:
            create: Callable[..., Awaitable[Any]] = client.chat.completions.create
            answer = await create(model="fake", messages=messages, **body)
            return [chunk async for chunk in answer] if body.get("stream") else answer

    return asyncio.run(run())


def gather(chunks: list[Any]) -> dict[str, Any]:
    """What a client makes of a stream, with the rules of OpenAI's deltas checked."""
    assert chunks[0].choices[0].delta.role == "assistant"
    calls: list[dict[str, Any]] = []
    content, reasoning, reason = "", "", None
    for chunk in chunks:
        (choice,) = chunk.choices
        assert reason is None, "something comes after the finish reason"
        reason = choice.finish_reason
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or []:
            if call.index == len(calls):  # the first delta of a call: all but its arguments
                assert call.id and call.type == "function" and call.function.arguments == ""
                calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
            else:
                assert call.index == len(calls) - 1
                assert call.id is None and call.type is None and call.function.name is None
                calls[-1]["arguments"] += call.function.arguments
    return {"content": content, "reasoning": reasoning, "calls": calls, "reason": reason}


def test_calls_whole() -> None:
    llm = ScriptedLLM(TEMPLATE, CALLS)
    (choice,) = ask(llm, tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather", "now"]
    assert [call.function.arguments for call in choice.message.tool_calls] == ARGUMENTS
    assert all(call.type == "function" and call.id.startswith("call_") for call in choice.message.tool_calls)
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert f"TOOLS {json.dumps(TOOLS)}" in llm.prompts[0]


def test_calls_streamed() -> None:
    chunks = ask(ScriptedLLM(TEMPLATE, CALLS), tools=TOOLS, stream=True)
    got = gather(chunks)
    assert got["content"] == "I look." and got["reason"] == "tool_calls"
    assert [call["name"] for call in got["calls"]] == ["get_weather", "now"]
    assert [call["arguments"] for call in got["calls"]] == ARGUMENTS
    pieces = [chunk for chunk in chunks if chunk.choices[0].delta.tool_calls]
    assert len(pieces) > 20  # arguments come as they are written, here a character each


def test_the_clients_own_accumulator() -> None:
    async def run() -> Any:
        async with (
            ScriptedLLM(TEMPLATE, CALLS).client() as client,
            client.chat.completions.stream(model="fake", messages=HI, tools=TOOLS) as stream,
        ):
            done = [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
            return done, await stream.get_final_completion()

    done, final = asyncio.run(run())
    assert [(event.name, event.arguments) for event in done] == [
        ("get_weather", ARGUMENTS[0]),
        ("now", ARGUMENTS[1]),
    ]
    assert [call.function.arguments for call in final.choices[0].message.tool_calls] == ARGUMENTS


def test_only_calls_have_no_content() -> None:
    script = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    (choice,) = ask(ScriptedLLM(TEMPLATE, script), tools=TOOLS).choices
    assert choice.message.content is None and len(choice.message.tool_calls) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_where_parallel_ones_are_not_wanted(stream: bool) -> None:
    got = ask(ScriptedLLM(TEMPLATE, CALLS), tools=TOOLS, parallel_tool_calls=False, stream=stream)
    if stream:
        assert [call["name"] for call in gather(got)["calls"]] == ["get_weather"]
    else:
        assert [call.function.name for call in got.choices[0].message.tool_calls] == ["get_weather"]


@pytest.mark.parametrize("body", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}])
def test_without_tools_a_call_is_text(body: dict[str, Any]) -> None:
    llm = ScriptedLLM(TEMPLATE, CALLS)
    (choice,) = ask(llm, **body).choices
    assert choice.message.content == CALLS and choice.message.tool_calls is None
    assert choice.finish_reason == "stop" and "TOOLS" not in llm.prompts[0]
    assert gather(ask(llm, stream=True, **body))["content"] == CALLS


def test_a_call_that_is_cut_short() -> None:
    for stream in (False, True):
        got = ask(ScriptedLLM(TEMPLATE, CALLS), tools=TOOLS, max_tokens=64, stream=stream)
        if stream:
            assert gather(got)["reason"] == "length"
            assert gather(got)["calls"][0]["arguments"] == '{"city"'
        else:
            assert got.choices[0].finish_reason == "length"
            assert got.choices[0].message.tool_calls[0].function.arguments == '{"city"'


def test_a_malformed_call_is_text() -> None:
    script = '<tool_call>{"name": "get_weather", "arguments": "Paris"}</tool_call>'
    llm = ScriptedLLM(TEMPLATE, script)
    (choice,) = ask(llm, tools=TOOLS).choices
    assert (choice.message.content, choice.finish_reason) == (script, "stop")
    assert gather(ask(llm, tools=TOOLS, stream=True))["content"] == script


def test_every_sequence_has_its_own_calls() -> None:
    answer = ask(ScriptedLLM(TEMPLATE, CALLS), tools=TOOLS, n=2)
    ids = {call.id for choice in answer.choices for call in choice.message.tool_calls}
    assert [choice.index for choice in answer.choices] == [0, 1] and len(ids) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_of_every_token_once(stream: bool) -> None:
    """Those of marks too, whose text is not told."""
    got = ask(ScriptedLLM(TEMPLATE, CALLS), tools=TOOLS, logprobs=True, stream=stream)
    parts = [chunk.choices[0].logprobs for chunk in (got if stream else [got])]
    entries = [entry for part in parts if part for entry in part.content]
    assert b"".join(bytes(entry.bytes) for entry in entries) == CALLS.encode() + b"<|im_end|>"


def test_a_conversation_with_calls() -> None:
    llm = ScriptedLLM(TEMPLATE, "Sunny.")
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'},
    }
    messages = [
        *HI,
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "blue"}'},
    ]
    ask(llm, messages, tools=TOOLS)
    assert llm.prompts[0].endswith(
        '|user: Hi|assistant thought hm: <tool_call>get_weather {"city": "Köln"}'
        '|tool: {"sky": "blue"}|assistant: '
    )
    call["function"]["arguments"] = {"city": "Köln"}  # type: ignore[index]
    ask(llm, messages, tools=TOOLS)
    assert llm.prompts[1] == llm.prompts[0]


REASONED = "<think>\nLet me see.\n</think>\n\nI look."


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning(stream: bool) -> None:
    llm = ScriptedLLM(THINKS, REASONED + CALLS.removeprefix("I look."))
    got = ask(llm, tools=TOOLS, stream=stream)
    if stream:
        gathered = gather(got)
        assert (gathered["reasoning"], gathered["content"]) == ("Let me see.", "I look.")
        assert [call["arguments"] for call in gathered["calls"]] == ARGUMENTS
    else:
        message = got.choices[0].message
        assert (message.reasoning_content, message.content) == ("Let me see.", "I look.")
        assert [call.function.arguments for call in message.tool_calls] == ARGUMENTS


def test_reasoning_that_the_template_began() -> None:
    llm = ScriptedLLM(THINKS, "Let me see.</think>I look.")
    body: dict[str, Any] = {"extra_body": {"chat_template_kwargs": {"opening": "<think>\n"}}}
    message = ask(llm, **body).choices[0].message
    assert (message.reasoning_content, message.content) == ("Let me see.", "I look.")
    message = ask(llm).choices[0].message  # nothing begins it: what the model writes is its answer
    assert message.content == llm.script and not hasattr(message, "reasoning_content")


def test_reasoning_left_in_the_text() -> None:
    llm = ScriptedLLM(THINKS, REASONED)
    message = ask(llm, extra_body={"separate_reasoning": False}).choices[0].message
    assert message.content == REASONED and not hasattr(message, "reasoning_content")
    assert ask(llm, options={"reasoning_parser": "none"}).choices[0].message.content == REASONED


def test_reasoning_in_one_piece() -> None:
    chunks = ask(ScriptedLLM(THINKS, REASONED), stream=True, extra_body={"stream_reasoning": False})
    pieces = [getattr(chunk.choices[0].delta, "reasoning_content", None) for chunk in chunks]
    assert [piece for piece in pieces if piece] == ["Let me see."]
    assert gather(chunks)["content"] == "I look."


def test_reasoning_effort_reaches_the_template() -> None:
    llm = ScriptedLLM(TEMPLATE, "Hi")
    ask(llm, reasoning_effort="high")
    assert llm.prompts[0].endswith("effort high|assistant: ")
    assert "reasoning_effort" in refused(
        ScriptedLLM("{{ messages }}", ""), "reasoning_effort", reasoning_effort="low"
    )
    other = {"chat_template_kwargs": {"reasoning_effort": "high"}}
    refused(llm, "reasoning_effort", reasoning_effort="low", extra_body=other)


def refused(llm: ScriptedLLM, field: str, messages: list[Any] = HI, **body: Any) -> str:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(llm, messages, **body)
    assert caught.value.param == field, caught.value
    assert not llm.prompts or len(llm.prompts) == 1
    return str(caught.value)


def function(**fields: Any) -> list[Any]:
    return [{"type": "function", "function": fields}]


LIST = '[{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "now", "arguments": {}}]'


@pytest.mark.parametrize("stream", [False, True])
def test_calls_that_must_be_made(stream: bool) -> None:
    """The output is a list of calls, by a grammar of the tools that may be called."""
    llm = ScriptedLLM(TEMPLATE, LIST)
    calls = called(ask(llm, tools=TOOLS, tool_choice="required", stream=stream))
    assert calls == [("get_weather", '{"city": "Rome"}'), ("now", "{}")]
    llm.script = LIST[: LIST.index("}}") + 2] + "]"
    one = called(ask(llm, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, stream=stream))
    named = called(ask(llm, tools=TOOLS, tool_choice=function(name="get_weather")[0], stream=stream))
    assert one == named == calls[:1]
    schemas = [json.loads(params.grammar.text) for _, params, *_ in llm.calls]
    assert [each.get("maxItems") for each in schemas] == [None, 1, 1]
    assert [len(each["items"]["anyOf"]) for each in schemas] == [2, 2, 1]
    assert all("TOOLS" in prompt for prompt in llm.prompts)


def test_strict_tools_are_held_to_their_schemas() -> None:
    """Grammar and template; tests/engine/grammar/test_calls.py walks the first."""
    tools = [TOOLS[0], {"type": "function", "function": {**TOOLS[1]["function"], "strict": True}}]
    llm = ScriptedLLM(TEMPLATE, CALLS)
    assert len(ask(llm, tools=tools).choices[0].message.tool_calls) == 2
    held = llm.calls[0][1].grammar
    assert held.kind == "calls" and held.thinking is None
    assert json.loads(held.text) == {
        "trigger": "<tool_call>",
        "tags": [
            {
                "head": '\n{"name": "get_weather", "arguments": ',
                "schema": {"type": "object"},
                "tail": "}\n</tool_call>",
            },
            {
                "head": '\n{"name": "now", "arguments": ',
                "schema": {"type": "object", "additionalProperties": False},
                "tail": "}\n</tool_call>",
            },
        ],
    }
    assert f"TOOLS {json.dumps(TOOLS)}" in llm.prompts[0]
    ask(llm, tools=tools, tool_choice="none")
    assert llm.calls[1][1].grammar is None
    thinks = ScriptedLLM(THINKS, CALLS)
    ask(thinks, tools=tools, extra_body={"thinking_budget": 5})
    assert thinks.calls[0][1].grammar == replace(held, thinking=Thinking("<think>", "</think>", "", 5))
    ask(thinks, tools=tools, extra_body={"separate_reasoning": False})
    assert thinks.calls[1][1].grammar == held
    refused(
        ScriptedLLM(THINKS, ""), "thinking_budget", tools=tools,
        extra_body={"thinking_budget": 5, "separate_reasoning": False},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["llama3", "pythonic", "qwen3_coder", "gpt-oss"])
def test_formats_that_cannot_hold_calls_to_a_schema(name: str) -> None:
    tools = function(name="f", strict=True)
    options = {"tool_call_parser": name}
    assert f"as {TOOL_FORMATS[name].name} writes them" in refused(
        ScriptedLLM(TEMPLATE, ""), "tools", tools=tools, options=options
    )
    forced = ScriptedLLM(TEMPLATE, '[{"name": "f", "arguments": {}}]')
    assert called(ask(forced, tools=tools, tool_choice="required", options=options)) == [("f", "{}")]


def called(answer: Any) -> list[tuple[str, str]]:
    """Name and arguments of the calls of an answer, or of its chunks; there is nothing else in it."""
    if not isinstance(answer, list):
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls" and not choice.message.content
        return [(each.function.name, each.function.arguments) for each in choice.message.tool_calls]
    calls: list[list[str]] = []
    for chunk in answer:
        delta = chunk.choices[0].delta
        assert not delta.content
        for each in delta.tool_calls or ():
            if each.index == len(calls):
                calls.append([each.function.name, ""])
            calls[each.index][1] += each.function.arguments or ""
    assert answer[-1].choices[0].finish_reason == "tool_calls"
    return [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": ["now"]}, "tools[0]"),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": function(description="nameless")}, "tools[0].function.name"),
        ({"tools": function(name="")}, "tools[0].function.name"),
        ({"tools": function(name="two words")}, "tools[0].function.name"),
        ({"tools": function(name="f" * 129)}, "tools[0].function.name"),
        ({"tools": function(name=7)}, "tools[0].function.name"),
        ({"tools": TOOLS + function(name="now")}, "tools[2].function.name"),
        ({"tools": function(name="f", parameters="text")}, "tools[0].function.parameters"),
        ({"tools": function(name="f", parameters={"type": "string"})}, "tools[0].function.parameters"),
        ({"tools": function(name="f", parameters={"properties": 3})}, "tools[0].function.parameters"),
        ({"tools": function(name="f", strict="yes")}, "tools[0].function.strict"),
        ({"tools": function(name="f", strict=True), "extra_body": {"regex": "a"}}, "tools"),
        ({"tools": function(name="f", color="red")}, "tools[0].function.color"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "required", "extra_body": {"regex": "a"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": function(name="then")[0]}, "tool_choice.function.name"),
        ({"tool_choice": function(name="now")[0]}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ],
)
def test_bad_tools(body: dict[str, Any], field: str) -> None:
    refused(ScriptedLLM(TEMPLATE, ""), field, **body)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": function(arguments="{}")},
            "messages[0].tool_calls[0].function.name",
        ),
        *(
            (
                {"role": "assistant", "tool_calls": function(name="f", arguments=arguments)},
                "messages[0].tool_calls[0].function.arguments",
            )
            for arguments in ("{", "[1]", "null", "[" * 100_000)
        ),
    ],
)
def test_bad_calls_in_messages(message: dict[str, Any], field: str) -> None:
    refused(ScriptedLLM(TEMPLATE, ""), field, [message])


def test_a_template_that_cannot_do_tools() -> None:
    llm = ScriptedLLM("{# tools #} TOOLS tool_calls {{ messages[0].content }}", "Hi")
    assert "takes no tools" in refused(llm, "tools", tools=TOOLS)
    calls = [*HI, {"role": "assistant", "tool_calls": function(name="now", arguments="{}")}]
    refused(llm, "messages[1].tool_calls", calls)
    assert ask(llm, tools=TOOLS, tool_choice="none").choices[0].message.content == "Hi"


def test_a_template_that_shows_no_format() -> None:
    llm = ScriptedLLM("{{ tools }} {{ messages[0].content }}", CALLS)
    assert "--tool-call-parser" in refused(llm, "tools", tools=TOOLS)
    answer = ask(llm, tools=TOOLS, options={"tool_call_parser": "qwen25"})
    assert len(answer.choices[0].message.tool_calls) == 2


def test_marks_that_are_special_tokens_are_seen() -> None:
    """The fake tokenizer's <|im_start|> is special, and so not shown but to a format whose mark it is."""
    llm = ScriptedLLM(TEMPLATE, "<|im_start|>Hi")
    assert ask(llm).choices[0].message.content == "Hi"
    llm.tokenizer.special_texts = frozenset(["<tool_call>"])
    assert ask(llm, tools=TOOLS).choices[0].message.content == llm.script


def test_options_offer_every_format() -> None:
    assert set(get_args(ToolCallParser)) == {"auto", "none", *TOOL_FORMATS}
    assert set(get_args(ReasoningParser)) == {"auto", "none", *REASONING_FORMATS}
    with pytest.raises(ConfigError, match="tool_call_parser is 'gpt'; accepted are auto, none, hermes"):
        ServerOptions(tool_call_parser="gpt")  # type: ignore[arg-type]


def test_choices_are_told_with_their_reasons() -> None:
    chosen = choose_formats(ScriptedLLM(THINKS, "").tokenizer, ServerOptions())
    assert [(name, value) for name, value, _ in chosen.choices] == [
        ("tool_call_parser", "hermes"),
        ("reasoning_parser", "qwen3"),
    ]
    assert all(reason.startswith("the chat template has <") for _, _, reason in chosen.choices)
    given = choose_formats(
        ScriptedLLM(THINKS, "").tokenizer,
        ServerOptions(tool_call_parser="none", reasoning_parser="deepseek-r1"),
    )
    assert given.tools is None and given.reasoning is not None and not given.choices
    with pytest.raises(ConfigError, match="reasoning_parser is 'qwen3'; with skip_tokenizer_init"):
        choose_formats(None, ServerOptions(reasoning_parser="qwen3"))
    assert choose_formats(None, ServerOptions()).choices == ()
