"""What OpenAI's clients ask beside the text: echo, best_of, usage in every event, answers that go on."""

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from radixmesh.engine.outputs import RequestOutput
from radixmesh.engine.request import TokenLogprobs
from radixmesh.engine.server.completions import best
from tests.engine.server.conftest import Start
from tests.engine.server.test_openai_client import IM_START, chat_prompt, text_of, tokens_after
from tests.engine.text.test_fim import with_marks

WHOLE: dict[str, Any] = {"model": "fake", "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_echo(client: Any) -> None:
    got = client.completions.create(prompt=["hello", "you"], n=2, max_tokens=8, echo=True, **WHOLE)
    expected = [each + text_of(tokens_after(list(each.encode()), 8)) for each in ("hello", "you")]
    assert [choice.text for choice in got.choices] == [expected[0]] * 2 + [expected[1]] * 2
    ids = [IM_START, *b"hi"]
    (choice,) = client.completions.create(prompt=ids, max_tokens=8, echo=True, **WHOLE).choices
    assert choice.text == "hi" + text_of(tokens_after(ids, 8))


def test_echo_streamed(client: Any) -> None:
    stream = client.completions.create(prompt=["hello", "you"], max_tokens=8, echo=True, stream=True, **WHOLE)
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {
        k: each + text_of(tokens_after(list(each.encode()), 8)) for k, each in enumerate(("hello", "you"))
    }


def output(index: int, *logprobs: float) -> RequestOutput:
    values = [TokenLogprobs(logprob=each, top_ids=[], top_logprobs=[]) for each in logprobs]
    return RequestOutput(request_id="r", index=index, token_ids=[1] * len(values), logprobs=values)


def test_the_best_have_the_highest_mean() -> None:
    outputs = [output(0, -1.0, -3.0), output(1, -1.5), output(2, -0.1, -0.1, -9.0), output(3, -1.0, -1.0)]
    assert [each.index for each in best(outputs, 2)] == [3, 1]
    assert [each.index for each in best(outputs, 3)] == [3, 1, 0]
    assert best(outputs, 4) == outputs  # nothing to choose


def test_best_of(client: Any) -> None:
    got = client.completions.create(prompt=["a", "b"], n=2, best_of=5, max_tokens=4, **WHOLE)
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    expected = [text_of(tokens_after([each], 4)) for each in b"ab"]
    assert [choice.text for choice in got.choices] == [expected[0]] * 2 + [expected[1]] * 2
    assert all(choice.logprobs is None for choice in got.choices)
    assert got.usage.completion_tokens == 2 * 5 * 4  # all that were generated, as OpenAI counts


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_usage_in_every_event(client: Any, route: str) -> None:
    create = client.completions.create if route == "completions" else client.chat.completions.create
    prompt: dict[str, Any] = (
        {"prompt": "one"} if route == "completions" else {"messages": [{"role": "user", "content": "one"}]}
    )
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = create(max_tokens=10, stream=True, stream_options=options, **prompt, **WHOLE)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 10
    assert not last.choices and last.usage == chunks[-1].usage
    *chunks, last = create(
        max_tokens=10, stream=True, stream_options={"include_usage": True}, **prompt, **WHOLE
    )
    assert {chunk.usage for chunk in chunks} == {None} and last.usage.completion_tokens == 10
    *_, last = create(
        max_tokens=10, stream=True, stream_options={"continuous_usage_stats": True}, **prompt, **WHOLE
    )
    assert last.choices and last.usage.completion_tokens == 10


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ({"prefix": True}, {}),
        ({}, {"continue_final_message": True}),
        ({}, {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
def test_an_answer_goes_on(client: Any, message: dict[str, Any], options: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, ", **message}]
    got = client.chat.completions.create(
        model="fake",
        messages=messages,
        max_tokens=9,
        temperature=0,
        extra_body={"ignore_eos": True, **options},
    )
    prompt = [*chat_prompt(("user", "Hi")), *b"Well, "]
    assert got.choices[0].message.content == text_of(tokens_after(prompt, 9))
    assert got.usage.prompt_tokens == len(prompt)


def test_no_answer_is_opened(client: Any) -> None:
    got = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=9,
        temperature=0,
        extra_body={"ignore_eos": True, "add_generation_prompt": False},
    )
    prompt = chat_prompt(("user", "Hi"))[: -len(b"assistant\n") - 1]
    assert got.choices[0].message.content == text_of(tokens_after(prompt, 9))


def test_suffix(start: Start, tmp_path: Path) -> None:
    """A tokenizer may have more tokens than the fake model: here those of FIM are its own three, renamed."""
    names = {"<|endoftext|>": "<fim_prefix>", "<|im_start|>": "<fim_suffix>", "<|im_end|>": "<fim_middle>"}
    with_marks(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text()
        for old, new in names.items():
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
    coder = start(config={"tokenizer_path": str(tmp_path)})
    ids = [256, *b"def f(", 257, *b"): pass", 258]
    expected = "def f(" + text_of(tokens_after(ids, 7))
    for prompt in ("def f(", list(b"def f(")):
        body = {"prompt": prompt, "suffix": "): pass", "max_tokens": 7, "temperature": 0, "echo": True}
        got = httpx.post(f"{coder.url}/v1/completions", json={**body, "ignore_eos": True}).json()
        assert got["choices"][0]["text"] == expected and got["usage"]["prompt_tokens"] == len(ids)
    coder.end()
