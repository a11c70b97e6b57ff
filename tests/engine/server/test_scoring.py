"""/score and /rerank over the fake model, whose log probabilities fall by 1 from id to id."""

import json
import math
from typing import Any

import httpx
import pytest

from radixmesh.backends.fake.backend import TOKENIZER
from tests.engine.server.conftest import Start
from tests.engine.server.test_openai_client import VOCAB, tokens_after

QUERY = "A query, long enough for more than one page of the pool. "
LABELS = [7, 0, 258]
NO, YES = 20, 128
ASKS = """{# for a "yes" or "no" #}{{ instruct | default("Find it.") }}
Q: {{ messages[0].content }} D: {{ messages[1].content }}"""


def logprob(prompt: list[int], token: int) -> float:
    """What the fake model pretends, from the likeliest token upwards."""
    (likeliest,) = tokens_after(prompt, 1)
    return -0.5 - (token - likeliest) % VOCAB


def post(server: Any, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("item_first", [False, True])
def test_probabilities_of_the_labels(server: Any, path: str, item_first: bool) -> None:
    items = ["one", "another item", ""]
    asked = {"query": QUERY, "items": items, "label_token_ids": LABELS, "item_first": item_first}
    got = post(server, path, **asked, model="fake").json()
    prompts = [list((item + QUERY if item_first else QUERY + item).encode()) for item in items]
    assert len(got["scores"]) == len(items) and (got["object"], got["model"]) == ("scoring", "fake")
    for prompt, scores in zip(prompts, got["scores"], strict=True):
        assert scores == pytest.approx([math.exp(logprob(prompt, label)) for label in LABELS], abs=1e-12)
    count = sum(map(len, prompts))
    assert got["usage"]["prompt_tokens"] == got["usage"]["total_tokens"] == count
    shares = post(server, path, **asked, apply_softmax=True).json()["scores"]
    for prompt, scores in zip(prompts, shares, strict=True):
        weights = [math.exp(logprob(prompt, label)) for label in LABELS]
        assert scores == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-12)
        assert sum(scores) == pytest.approx(1)


def test_token_ids_and_a_single_item(server: Any) -> None:
    texts = post(server, "/score", query="ab", items=["cd", "e"], label_token_ids=LABELS).json()
    asked = {"query": list(b"ab"), "items": [list(b"cd"), list(b"e")], "label_token_ids": LABELS}
    assert post(server, "/score", **asked).json()["scores"] == texts["scores"]
    one = post(server, "/score", query="ab", items="cd", label_token_ids=LABELS).json()
    assert one["scores"] == texts["scores"][:1]


def test_the_query_is_computed_once(start: Start) -> None:
    server = start()
    items = [f"item {number}" for number in range(10)]
    got = post(server, "/score", query=QUERY, items=items, label_token_ids=[1]).json()
    pages = len(QUERY) // int(server.stats()["page_size"]) * int(server.stats()["page_size"])
    assert pages > 0 and got["usage"]["prompt_tokens_details"]["cached_tokens"] == 9 * pages
    server.end()


GOOD: dict[str, Any] = {"query": "a", "items": ["b", "c", "d"], "label_token_ids": [1]}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"items": ["b", "x" * 5000, "d"]}, "items[1]", "context length"),
        ({"items": ["b", 17, "d"]}, "items[1]", "accepted is a text, as query is"),
        ({"items": ["b", [1], "d"]}, "items[1]", "accepted is a text, as query is"),
        ({"query": [1], "items": [[2], "b"]}, "items[1]", "accepted is a list of token ids, as query is"),
        ({"query": [1], "items": [[2], [3, 259]]}, "items[1][1]", "from 0 to 258"),
        ({"query": [1, 259], "items": [[2]]}, "query[1]", "from 0 to 258"),
        ({"query": "", "items": ["b", ""]}, "items[1]", "is empty"),
        ({"query": [[1]]}, "query", "a list of token ids"),
        ({"items": []}, "items", "1 to 1024"),
        ({"items": ["b"] * 1025}, "items", "1 to 1024"),
        ({"label_token_ids": []}, "label_token_ids", "not empty"),
        ({"label_token_ids": [1] * 65}, "label_token_ids", "shorter list"),
        ({"label_token_ids": [1, 259]}, "label_token_ids[1]", "from 0 to 258"),
        ({"label_token_ids": [-1]}, "label_token_ids[0]", "at least 0"),
        ({"return_pooled_hidden_states": True}, "return_pooled_hidden_states", "not supported"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_ends_the_request(
    server: Any, change: dict[str, Any], field: str, words: str
) -> None:
    got = post(server, "/score", **GOOD | change)
    error = got.json()["error"]
    assert got.status_code == 400 and error["param"] == field
    assert error["message"].startswith(field) and words in error["message"]
    assert post(server, "/score", **GOOD).status_code == 200


@pytest.fixture(scope="module")
def reranker(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The fake model with a chat template that asks, and two of its tokens called yes and no."""
    folder = tmp_path_factory.mktemp("reranker")
    data = json.loads((TOKENIZER / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    for word, token in (("no", NO), ("yes", YES)):  # in place of bytes that no test sends
        del vocab[next(name for name, index in vocab.items() if index == token)]
        vocab[word] = token
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        data["added_tokens"].append({"id": token, "content": word, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text((TOKENIZER / "tokenizer_config.json").read_text())
    (folder / "ask.jinja").write_text(ASKS)
    return start(config={"tokenizer_path": str(folder), "chat_template": str(folder / "ask.jinja")})


def relevance(query: str, document: str, instruct: str = "Find it.") -> float:
    prompt = list(f"{instruct}\nQ: {query} D: {document}".encode())
    return 1 / (1 + math.exp(logprob(prompt, NO) - logprob(prompt, YES)))


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_by_their_relevance(reranker: Any, path: str) -> None:
    documents = [f"document {'x' * number}" for number in range(12)]
    given = [*documents[:6], *({"text": text} for text in documents[6:])]
    got = post(reranker, path, query="Where?", documents=given)
    results = got.json()["results"]
    assert got.status_code == 200 and sorted(each["index"] for each in results) == list(range(12))
    for each in results:
        assert each["document"] == {"text": documents[each["index"]]}
        score = relevance("Where?", documents[each["index"]])
        assert each["relevance_score"] == pytest.approx(score, rel=1e-9, abs=1e-300)
    scores = [each["relevance_score"] for each in results]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1
    assert got.json()["usage"]["prompt_tokens"] == sum(len(f"Find it.\nQ: Where? D: {t}") for t in documents)
    best = post(reranker, path, query="Where?", documents=documents, top_n=3, return_documents=False).json()
    assert best["results"] == [
        {name: each[name] for name in ("index", "relevance_score")} for each in results[:3]
    ]
    every = post(reranker, path, query="Where?", documents=documents[:2], top_n=99, instruct="Look.").json()
    for each in every["results"]:
        score = relevance("Where?", documents[each["index"]], "Look.")
        assert each["relevance_score"] == pytest.approx(score, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"documents": ["a", "x" * 5000]}, "documents[1]"),
        ({"documents": ["a", 5]}, "documents[1]"),
        ({"documents": ["a", {"txt": "b"}]}, "documents[1].txt"),
        ({"documents": ["a", {}]}, "documents[1].text"),
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * 1025}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"max_tokens_per_doc": 512}, "max_tokens_per_doc"),
        ({"query": ["a"]}, "query"),
    ],
    ids=str,
)
def test_what_rerank_refuses_is_named(reranker: Any, body: dict[str, Any], field: str) -> None:
    got = post(reranker, "/rerank", **{"query": "a", "documents": ["a"]} | body)
    assert got.status_code == 400 and got.json()["error"]["param"] == field
    assert field in got.json()["error"]["message"]


def test_models_that_do_not_rerank_say_so(server: Any) -> None:
    got = post(server, "/rerank", query="a", documents=["b"])
    assert got.status_code == 400 and "does not rerank; accepted are models" in got.json()["error"]["message"]
