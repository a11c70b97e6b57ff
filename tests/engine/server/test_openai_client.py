"""The official client against a real server; tokens are the fake model's, computed by hand."""

import asyncio
from typing import Any

import openai
import pytest

from radixmesh.backends.fake.oracle import expected_tokens

VOCAB, IM_START, IM_END = 259, 257, 258


def tokens_after(prompt: list[int], count: int) -> list[int]:
    return expected_tokens(prompt, count, VOCAB)


def text_of(tokens: list[int]) -> str:
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


def chat_prompt(*messages: tuple[str, str]) -> list[int]:
    """ChatML, written by hand."""
    ids: list[int] = []
    for role, content in messages:
        ids += [IM_START, *f"{role}\n{content}".encode(), IM_END, *b"\n"]
    return [*ids, IM_START, *b"assistant\n"]


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client: Any) -> None:
    (model,) = client.models.list().data
    assert model.id == "fake" and model.max_model_len == 4096
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found" and "org/other" in str(caught.value)


def test_completion(client: Any) -> None:
    got = client.completions.create(
        model="fake", prompt="hello", max_tokens=20, temperature=0, extra_body={"ignore_eos": True}
    )
    assert got.choices[0].text == text_of(tokens_after(list(b"hello"), 20))
    assert got.choices[0].finish_reason == "length"
    assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens) == (5, 20, 25)


def test_completion_of_many_prompts_numbers_choices_prompt_first(client: Any) -> None:
    prompts = [[1, 2, 3], [7, 8]]
    got = client.completions.create(
        model="fake", prompt=prompts, n=2, max_tokens=5, temperature=0, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    expected = [text_of(tokens_after(prompt, 5)) for prompt in prompts]
    assert [choice.text for choice in got.choices] == [expected[0]] * 2 + [expected[1]] * 2
    assert got.usage.prompt_tokens == 5 and got.usage.completion_tokens == 20


def test_completion_stream(client: Any) -> None:
    stream = client.completions.create(
        model="fake",
        prompt=["one", "two"],
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    texts, reasons, usage = {0: "", 1: ""}, {}, None
    for chunk in stream:
        assert usage is None  # it comes last
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {k: text_of(tokens_after(list(p), 12)) for k, p in enumerate([b"one", b"two"])}
    assert reasons == {0: "length", 1: "length"}
    assert usage is not None and usage.prompt_tokens == 6 and usage.completion_tokens == 24


def test_default_max_tokens_is_openais(client: Any) -> None:
    got = client.completions.create(model="fake", prompt="a", temperature=0, extra_body={"ignore_eos": True})
    assert got.usage.completion_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs(client: Any, stream: bool) -> None:
    options: dict[str, Any] = {"extra_body": {"ignore_eos": True}, "stream": stream}
    got = client.completions.create(
        model="fake", prompt="xyz", max_tokens=6, temperature=0, logprobs=3, **options
    )
    parts = [chunk.choices[0].logprobs for chunk in (got if stream else [got]) if chunk.choices]
    parts = [part for part in parts if part]
    tokens = tokens_after(list(b"xyz"), 6)
    texts = [text for part in parts for text in part.tokens]
    assert texts == [text_of([token]) if token < 256 else SPECIAL[token] for token in tokens]
    assert [value for part in parts for value in part.token_logprobs] == [-0.5] * 6
    offsets = [offset for part in parts for offset in part.text_offset]
    assert offsets == [sum(map(len, texts[:k])) for k in range(6)]
    for part in parts:
        for text, top in zip(part.tokens, part.top_logprobs, strict=True):
            assert top[text] == -0.5 and len(top) <= 3


SPECIAL = {256: "<|endoftext|>", 257: "<|im_start|>", 258: "<|im_end|>"}


def test_chat(client: Any) -> None:
    got = client.chat.completions.create(
        model="fake",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
        ],
        max_completion_tokens=15,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    prompt = chat_prompt(("system", "Be brief."), ("user", "Hi\nthere"))
    assert got.choices[0].message.role == "assistant"
    assert got.choices[0].message.content == text_of(tokens_after(prompt, 15))
    assert got.usage.prompt_tokens == len(prompt)


def test_chat_runs_to_the_end_of_the_context_by_default(client: Any) -> None:
    got = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "x" * 3900}],
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert got.choices[0].finish_reason == "length"
    assert got.usage.total_tokens == 4096


def test_chat_stream(client: Any) -> None:
    stream = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "count"}],
        max_tokens=10,
        temperature=0,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    texts: dict[int, str] = {}
    reasons, usage = {}, None
    for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            if choice.index not in texts:  # the role comes first, alone
                assert choice.delta.role == "assistant" and choice.delta.content == ""
                texts[choice.index] = ""
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    expected = text_of(tokens_after(chat_prompt(("user", "count")), 10))
    assert texts == {0: expected, 1: expected} and reasons == {0: "length", 1: "length"}
    assert usage is not None and usage.completion_tokens == 20


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(client: Any, stream: bool) -> None:
    got = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "p"}],
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        stream=stream,
        extra_body={"ignore_eos": True},
    )
    entries = []
    for chunk in got if stream else [got]:
        if chunk.choices and chunk.choices[0].logprobs:
            entries += chunk.choices[0].logprobs.content
    tokens = tokens_after(chat_prompt(("user", "p")), 8)
    assert [bytes(entry.bytes) for entry in entries] == [
        bytes([token]) if token < 256 else SPECIAL[token].encode() for token in tokens
    ]
    for entry in entries:
        assert entry.logprob == -0.5 and [top.logprob for top in entry.top_logprobs] == [-0.5, -1.5]
        assert entry.top_logprobs[0].bytes == entry.bytes


def test_stop_string_is_not_shown(client: Any) -> None:
    whole = text_of(tokens_after(list(b"stop"), 40))
    stop = next(whole[k : k + 2] for k in range(5, 30) if whole[k : k + 2].isascii())
    got = client.completions.create(model="fake", prompt="stop", max_tokens=40, temperature=0, stop=[stop])
    assert got.choices[0].text == whole[: whole.index(stop)]
    assert got.choices[0].finish_reason == "stop" and got.choices[0].matched_stop == stop


def test_cached_tokens_are_told(client: Any) -> None:
    prompt = list(range(100)) * 2
    for _ in range(2):
        got = client.completions.create(model="fake", prompt=prompt, max_tokens=1, temperature=0)
    assert got.usage.prompt_tokens_details.cached_tokens >= 176  # all whole pages but the last token's
    salted = client.completions.create(
        model="fake", prompt=prompt, max_tokens=1, temperature=0, extra_body={"cache_salt": "mine"}
    )
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_seed_fixes_the_text(client: Any) -> None:
    def draw(seed: int) -> str:
        got = client.completions.create(model="fake", prompt="s", max_tokens=20, temperature=1, seed=seed)
        return str(got.choices[0].text)

    assert draw(1) == draw(1) != draw(2)


def test_errors_map_to_the_clients_classes(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="a")
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as negative:
        client.completions.create(model="fake", prompt="a", temperature=-1)
    assert negative.value.param == "temperature" and "-1" in str(negative.value)
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="fake", prompt="a" * 5000)
    assert long.value.param == "prompt" and "4096" in str(long.value)
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "a"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert tools.value.param == "tools"
    # A stream is refused with a status too, not with an event in a stream of status 200.
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="fake", prompt="a" * 5000, stream=True)


def test_async_client(server: Any) -> None:
    async def many() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:

            async def one(index: int) -> str:
                stream = await client.chat.completions.create(
                    model="fake",
                    messages=[{"role": "user", "content": f"number {index}"}],
                    max_tokens=12,
                    temperature=0,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(index) for index in range(20)))

    expected = [text_of(tokens_after(chat_prompt(("user", f"number {index}")), 12)) for index in range(20)]
    assert asyncio.run(many()) == expected
