"""/v1/embeddings with the official client; the fake model's hidden states are computed by hand."""

from typing import Any

import httpx
import numpy as np
import openai
import pytest

from radixmesh.backends.fake.oracle import expected_embedding

CHUNK = 64  # tokens in a step: longer inputs take several
INPUTS = ["Hello", "Another text, of more than one page.", "x" * 200]


@pytest.fixture(scope="module", params=["last", "mean"])
def served(start: Any, request: pytest.FixtureRequest) -> tuple[str, bool]:
    """The address of a server, and whether it pools to a mean."""
    server = start({"embedding_pooling": request.param, "chunked_prefill_size": CHUNK})
    return server.url, request.param == "mean"


@pytest.fixture(scope="module")
def client(served: tuple[str, bool]) -> Any:
    with openai.OpenAI(base_url=served[0] + "/v1", api_key="none", max_retries=0) as client:
        yield client


def expected(prompt: list[int], mean: bool, dimensions: int | None = None) -> np.ndarray:
    vector = np.array(expected_embedding(prompt, mean=mean)[:dimensions])
    return vector / np.linalg.norm(vector)


def test_texts_in_their_order(client: Any, served: tuple[str, bool]) -> None:
    for _ in range(2):  # the second time all is cached
        got = client.embeddings.create(model="fake", input=INPUTS)  # which asks for base64
        assert [each.index for each in got.data] == [0, 1, 2] and got.model == "fake"
        for text, each in zip(INPUTS, got.data, strict=True):
            np.testing.assert_allclose(each.embedding, expected(list(text.encode()), served[1]), rtol=1e-5)
        assert got.usage.prompt_tokens == got.usage.total_tokens == sum(map(len, INPUTS))


def test_every_form_of_input_and_of_output(client: Any, served: tuple[str, bool]) -> None:
    ids = list(b"Hello")
    for given, count in (("Hello", 1), (["Hello"], 1), (ids, 1), ([ids, ids], 2)):
        got = client.embeddings.create(model="fake", input=given, encoding_format="float")
        assert len(got.data) == count
        for each in got.data:
            assert isinstance(each.embedding, list) and len(each.embedding) == 4
            np.testing.assert_allclose(each.embedding, expected(ids, served[1]), rtol=1e-5)


def test_fewer_dimensions_have_length_one_again(client: Any, served: tuple[str, bool]) -> None:
    got = client.embeddings.create(model="fake", input="Hello", dimensions=2).data[0].embedding
    np.testing.assert_allclose(got, expected(list(b"Hello"), served[1], 2), rtol=1e-5)
    with pytest.raises(openai.BadRequestError, match="dimensions is 5; this model's embeddings have 4"):
        client.embeddings.create(model="fake", input="Hello", dimensions=5)


def test_refusals_name_the_field(client: Any) -> None:
    for given, message in (
        ("", "is empty"),
        ([], "none empty"),
        ([999], "token id 999"),
        ("x" * 5000, "tokens"),
    ):
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            client.embeddings.create(model="fake", input=given)
        assert caught.value.param == "input"


def test_texts_are_served_beside(client: Any) -> None:
    text = client.completions.create(model="fake", prompt="Hello", max_tokens=5, temperature=0)
    assert text.usage.completion_tokens == 5


def test_a_server_without_pooling_says_how_it_is_turned_on(server: Any) -> None:
    answer = httpx.post(server.url + "/v1/embeddings", json={"input": "Hello"})
    assert answer.status_code == 400 and "--embedding-pooling" in answer.json()["error"]["message"]
