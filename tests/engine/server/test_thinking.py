"""Budgets of thinking, and answers that a grammar holds to something after it, over HTTP."""

import json
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from radixmesh.engine.grammar.grammar import GrammarSpec, Thinking
from radixmesh.engine.text.reasoning.registry import REASONING_FORMATS
from tests.engine.server.conftest import Start
from tests.engine.server.scripted import ScriptedLLM
from tests.engine.server.test_chat_tools import HI, LIST, REASONED, TEMPLATE, THINKS, TOOLS, ask, refused
from tests.running import Running

OPENED = {"opening": "<think>\n"}
OPEN, MAYBE = Thinking("", "</think>"), Thinking("<think>", "</think>")
AB = GrammarSpec("regex", "ab", OPEN)


def grammar_of(template: str = THINKS, options: Any = None, **body: Any) -> Any:
    llm = ScriptedLLM(template, "")
    ask(llm, extra_body=body, options=options)
    return llm.calls[0][1].grammar


def budget(name: str, tokens: int) -> dict[str, Any]:
    return {name: tokens}


@pytest.mark.parametrize("name", ["thinking_budget", "thinking_token_budget"])
def test_a_budget_is_of_what_the_prompt_began_or_the_model_may(name: str) -> None:
    assert grammar_of(**budget(name, 5)) == GrammarSpec("text", "", Thinking("<think>", "</think>", "", 5))
    got = grammar_of(**budget(name, 0), chat_template_kwargs=OPENED)
    assert got == GrammarSpec("text", "", Thinking("", "</think>", "", 0))
    assert grammar_of(**budget(name, 5), chat_template_kwargs={"opening": "<think>\n\n</think>\n\n"}) is None
    unread = grammar_of(**budget(name, 5), separate_reasoning=False)
    assert unread == GrammarSpec("text", "", Thinking("<think>", "</think>", "", 5))
    always = grammar_of(options={"reasoning_parser": "deepseek-r1"}, **budget(name, 5))
    assert always == GrammarSpec("text", "", Thinking("", "</think>", "", 5))


def test_a_grammar_comes_after_thinking() -> None:
    assert grammar_of(regex="ab") == GrammarSpec("regex", "ab", MAYBE)
    assert grammar_of(regex="ab", chat_template_kwargs=OPENED) == AB
    both = grammar_of(regex="ab", thinking_budget=9, chat_template_kwargs=OPENED)
    assert both == GrammarSpec("regex", "ab", Thinking("", "</think>", "", 9))
    plain = GrammarSpec("regex", "ab")
    assert grammar_of(TEMPLATE, regex="ab") == plain
    assert grammar_of(regex="ab", chat_template_kwargs={"opening": "<think></think>"}) == plain
    assert grammar_of(regex="ab", separate_reasoning=False, chat_template_kwargs=OPENED) == plain
    assert grammar_of(regex="ab", options={"reasoning_parser": "none"}) == plain
    gpt = grammar_of(regex="ab", options={"reasoning_parser": "gpt-oss"})
    assert gpt.thinking == Thinking("", "<|channel|>final", "<|message|>")


@pytest.mark.parametrize("stream", [False, True])
def test_forced_calls_come_after_thinking(stream: bool) -> None:
    llm = ScriptedLLM(THINKS, REASONED.removesuffix("I look.") + LIST)
    got = ask(llm, tools=TOOLS, tool_choice="required", stream=stream)
    parts = [
        chunk.choices[0].delta if stream else chunk.choices[0].message for chunk in (got if stream else [got])
    ]
    assert "".join(getattr(each, "reasoning_content", None) or "" for each in parts) == "Let me see."
    calls = [call for each in parts for call in each.tool_calls or ()]
    assert "".join(call.function.arguments for call in calls) == '{"city": "Rome"}{}'
    assert not any(each.content for each in parts)
    assert llm.calls[0][1].grammar.thinking == MAYBE


def test_a_budget_reaches_a_template_that_takes_one() -> None:
    taking = ScriptedLLM(THINKS + "{{ thinking_budget }}", "Hi")
    ask(taking, extra_body={"thinking_budget": 77})
    assert taking.prompts[0].endswith("77") and taking.calls[0][1].grammar.thinking.budget == 77
    wish = ScriptedLLM(THINKS + "{{ thinking_budget }}", "Hi")
    ask(wish, extra_body={"chat_template_kwargs": {"thinking_budget": 78}})
    assert wish.prompts[0].endswith("78") and wish.calls[0][1].grammar is None
    both: dict[str, Any] = {"thinking_budget": 9, "chat_template_kwargs": {"thinking_budget": 8}}
    refused(
        ScriptedLLM(wish.tokenizer.chat_template, ""), "chat_template_kwargs.thinking_budget", extra_body=both
    )


@pytest.mark.parametrize(
    ("template", "body", "field"),
    [
        (TEMPLATE, {"thinking_budget": 5}, "thinking_budget"),
        (TEMPLATE, {"thinking_token_budget": 5}, "thinking_token_budget"),
        (THINKS, {"thinking_budget": -1}, "thinking_budget"),
        (THINKS, {"thinking_budget": 1.5}, "thinking_budget"),
        (THINKS, {"thinking_budget": 5, "thinking_token_budget": 6}, "thinking_token_budget"),
        (THINKS, {"chat_template_kwargs": {"thinking_budget": 5}}, "chat_template_kwargs.thinking_budget"),
        (TEMPLATE + "{# <|channel|> #}", {"thinking_budget": 5}, "thinking_budget"),
    ],
)
def test_budgets_that_cannot_be_kept(template: str, body: dict[str, Any], field: str) -> None:
    refused(ScriptedLLM(template, ""), field, extra_body=body)


@pytest.mark.parametrize("name", sorted(REASONING_FORMATS))
def test_what_a_prompt_has_ended_is_over(name: str) -> None:
    format = REASONING_FORMATS[name]
    over = "<|channel|>final<|message|>" if name == "gpt-oss" else "<think>\n\n</think>\n\n"
    assert format.thinking("user: Hi assistant: " + over) is None
    assert format.thinking("user: Hi assistant: ") is not None


# A real engine, whose model writes bytes at random.

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 22]}, "b": {"enum": ["x", "yy"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "ab", "schema": SCHEMA}}
QUIET = "{% for message in messages %}{{ message.content }}{% endfor %}<think>\n"


@pytest.fixture(scope="module")
def thinking_server(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    template = tmp_path_factory.mktemp("template") / "template.jinja"
    template.write_text(QUIET)
    config = {"chat_template": str(template), "constrained_json_disable_any_whitespace": True}
    return start(config, {"reasoning_parser": "qwen3"})


def spent(entries: list[Any]) -> int:
    """Tokens before the end of thinking begins, by the bytes of each."""
    text = b"".join(bytes(entry.bytes) for entry in entries)
    end, size = text.index(b"</think>"), 0
    for count, entry in enumerate(entries):
        if size >= end:
            return count
        size += len(entry.bytes)
    return len(entries)


@pytest.mark.parametrize("budget", [0, 1, 13])
def test_every_choice_keeps_its_budget_and_answers(thinking_server: Running, budget: int) -> None:
    body: dict[str, Any] = {
        "model": "fake", "messages": HI, "n": 3, "seed": 5, "max_tokens": 200,
        "response_format": FORMAT, "extra_body": {"thinking_budget": budget},
    }  # fmt: skip
    with openai.OpenAI(base_url=thinking_server.url + "/v1", api_key="none") as client:
        whole = client.chat.completions.create(**body, logprobs=True)
        chunks = list(client.chat.completions.create(**body, stream=True))
    for choice in whole.choices:
        assert choice.logprobs is not None and choice.message.content is not None
        assert spent(choice.logprobs.content or []) == budget
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
        assert choice.finish_reason == "stop"
    streamed = {index: ["", ""] for index in range(3)}
    for chunk in chunks:
        for part in chunk.choices:
            streamed[part.index][0] += getattr(part.delta, "reasoning_content", None) or ""
            streamed[part.index][1] += part.delta.content or ""
    for choice in whole.choices:
        reasoning = getattr(choice.message, "reasoning_content", "")
        assert streamed[choice.index] == [reasoning, choice.message.content]


def test_a_budget_beyond_the_answers_length_is_never_reached(thinking_server: Running) -> None:
    answer = httpx.post(
        thinking_server.url + "/v1/chat/completions",
        json={
            "messages": HI,
            "seed": 5,
            "max_tokens": 20,
            "thinking_budget": 1000,
            "response_format": FORMAT,
        },
        timeout=60,
    ).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == ""
    assert answer["usage"]["completion_tokens"] == 20


def test_other_dialects_keep_it_too(thinking_server: Running) -> None:
    url = thinking_server.url
    message = httpx.post(
        url + "/v1/messages",
        json={
            "model": "fake", "messages": HI, "max_tokens": 60,
            "thinking": {"type": "enabled", "budget_tokens": 0},
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
        timeout=60,
    ).json()  # fmt: skip
    jsonschema.validate(json.loads(message["content"][-1]["text"]), SCHEMA)
    response = httpx.post(
        url + "/v1/responses", json={"input": "Hi", "max_output_tokens": 30, "thinking_budget": 0}, timeout=60
    ).json()
    assert [item["type"] for item in response["output"]] == ["message"]
    told = httpx.post(
        url + "/api/chat", json={"messages": HI, "stream": False, "format": SCHEMA,
                                    "options": {"num_predict": 30}},
        timeout=60,
    ).json()  # fmt: skip
    assert len(told["message"]["thinking"]) > 0 or told["message"]["content"].startswith("{")
