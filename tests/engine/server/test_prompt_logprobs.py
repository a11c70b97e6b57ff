"""Log probabilities of prompts at OpenAI's routes: `echo` with `logprobs`, and vLLM's `prompt_logprobs`."""

import json
from typing import Any

import httpx
import pytest

from radixmesh.backends.fake.oracle import expected_prompt_logprobs, expected_tokens
from tests.engine.server.test_openai_client import chat_prompt

VOCAB = 259
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def http(server: Any) -> Any:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def choices(http: Any, **body: Any) -> list[dict[str, Any]]:
    got = http.post(COMPLETIONS, json={**GREEDY, **body})
    assert got.status_code == 200, got.text
    return list(got.json()["choices"])


def test_echo_with_logprobs_begins_with_the_prompts(http: Any) -> None:
    text = "hello"
    (choice,) = choices(http, prompt=text, echo=True, logprobs=2, max_tokens=3)
    tokens = [*text.encode(), *expected_tokens(text.encode(), 3, VOCAB)]
    known = expected_prompt_logprobs(tokens, VOCAB, top=2)
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == [None, *(own for own, _, _ in known)]
    assert logprobs["tokens"][:5] == list(text) and len(logprobs["tokens"]) == 8
    assert logprobs["text_offset"][:6] == [0, 1, 2, 3, 4, 5]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1][text[1]] == known[0][0]  # beside the likeliest
    assert choice["text"].startswith(text)


def test_echo_of_no_tokens_scores_the_prompt(http: Any) -> None:
    texts = ["hello", "you", "a"]
    got = http.post(
        COMPLETIONS, json={**GREEDY, "prompt": texts, "echo": True, "logprobs": 0, "max_tokens": 0}
    )
    for text, choice in zip(texts, got.json()["choices"], strict=True):
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
        own = [value for value, _, _ in expected_prompt_logprobs(text.encode(), VOCAB)]
        assert choice["logprobs"]["token_logprobs"] == [None, *own]
    assert got.json()["usage"]["completion_tokens"] == 0


def test_streamed_echo_says_the_same(http: Any) -> None:
    body = {"prompt": ["hello", "you"], "echo": True, "logprobs": 1, "max_tokens": 6}
    whole = choices(http, **body)
    told: dict[int, dict[str, list[Any]]] = {0: {}, 1: {}}
    texts = {0: "", 1: ""}
    for line in http.post(COMPLETIONS, json={**GREEDY, **body, "stream": True}).text.split("\n\n"):
        if not line or line.endswith("[DONE]"):
            continue
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        texts[choice["index"]] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            told[choice["index"]].setdefault(name, []).extend(values)
    assert [told[each["index"]] for each in whole] == [each["logprobs"] for each in whole]
    assert [texts[each["index"]] for each in whole] == [each["text"] for each in whole]


def vllms(prompt: list[int], texts: Any, count: int) -> list[Any]:
    """What `prompt_logprobs` has to be."""
    found: list[Any] = [None]
    for token, (own, likely, _) in zip(
        prompt[1:], expected_prompt_logprobs(prompt, VOCAB, top=count), strict=True
    ):
        entries: dict[str, tuple[float, int | None]] = {str(token): (own, None)}
        entries |= {str(other): (-0.5 - rank, rank + 1) for rank, other in enumerate(likely)}
        found.append(
            {
                each: {"logprob": value, "rank": rank, "decoded_token": texts(int(each))}
                for each, (value, rank) in entries.items()
            }
        )
    return found


def test_prompt_logprobs_in_vllms_form(http: Any) -> None:
    def text_of(token: int) -> str:
        (found,) = choices(http, prompt=[token], echo=True, logprobs=0, max_tokens=0)[0]["logprobs"]["tokens"]
        return str(found)

    prompt = [104, 101, expected_tokens([104, 101], 1, VOCAB)[0], 7]  # the third is the likeliest
    (choice,) = choices(http, prompt=prompt, prompt_logprobs=2, max_tokens=1)
    assert choice["prompt_logprobs"] == vllms(prompt, text_of, 2)
    assert choice["prompt_logprobs"][2][str(prompt[2])]["rank"] == 1
    assert choice["logprobs"] is None
    (both,) = choices(http, prompt=prompt, prompt_logprobs=1, echo=True, logprobs=3, max_tokens=1)
    assert both["prompt_logprobs"] == vllms(prompt, text_of, 1)
    messages = [{"role": "user", "content": "Hi"}]
    got = http.post(CHAT, json={**GREEDY, "messages": messages, "prompt_logprobs": 1, "max_tokens": 1}).json()
    assert got["prompt_logprobs"] == vllms(chat_prompt(("user", "Hi")), text_of, 1)


def test_of_a_prompt_in_the_cache(http: Any) -> None:
    body = {"prompt": "it is here already, all of it " * 4, "prompt_logprobs": 1, "max_tokens": 1}
    first, again = choices(http, **body), choices(http, **body)
    assert first == again
