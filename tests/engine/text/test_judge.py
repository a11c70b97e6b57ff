"""Prompts of causal rerankers, against those that their authors write."""

from pathlib import Path

import pytest

from radixmesh.backends.fake.backend import TOKENIZER
from radixmesh.engine.errors import RequestError
from radixmesh.engine.text.judge import find_judge
from radixmesh.engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine.text.test_fim import with_marks

YES, NO = 259, 260
# Of Qwen3's own template what these messages reach.
QWEN3 = """
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
# A template that has the task itself, as such that are given with --chat-template.
ASKS = """Is it relevant, "yes" or "no"? {{ instruct | default("Find it.") }}
Q: {{ messages[0]["content"] }} D: {{ messages[1]["content"] }}"""


def tokenizer_with(folder: Path, template: str, *words: str) -> Tokenizer:
    return Tokenizer(with_marks(folder, *words).fast, template)


@pytest.mark.parametrize("instruct", [None, "Find the capital."])
def test_qwen3_reranker(tmp_path: Path, instruct: str | None) -> None:
    judge = find_judge(tokenizer_with(tmp_path, QWEN3, "yes", "no"), ["x", "Qwen3-Reranker-0.6B"])
    assert (judge.yes, judge.no) == (YES, NO)
    ids = judge.prompts("Where?", ["Here.", "There."], instruct, 4096)
    task = instruct or "Given a web search query, retrieve relevant passages that answer the query"
    for document, got in zip(("Here.", "There."), ids, strict=True):
        assert judge.tokenizer.decode(got, skip_special_tokens=False) == (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and"
            ' the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
            "<|im_start|>user\n"
            f"<Instruct>: {task}\n<Query>: Where?\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n"
            "<think>\n\n</think>\n\n"
        )


def test_a_template_that_asks_itself(tmp_path: Path) -> None:
    judge = find_judge(tokenizer_with(tmp_path, ASKS, "yes", "no"), ["some model"])
    for instruct, told in ((None, "Find it."), ("Look.", "Look.")):
        (ids,) = judge.prompts("Where?", ["Here."], instruct, 4096)
        text = f'Is it relevant, "yes" or "no"? {told}\nQ: Where? D: Here.'
        assert ids == judge.tokenizer.encode(text, add_special_tokens=False)
    deaf = ASKS.replace('{{ instruct | default("Find it.") }}', "")
    judge = find_judge(tokenizer_with(tmp_path, deaf, "yes", "no"), ["some model"])
    with pytest.raises(RequestError, match="instruct is given; .* accepted is null") as caught:
        judge.prompts("Where?", ["Here."], "Look.", 4096)
    assert caught.value.field == "instruct"


def test_other_models_say_what_would_be_accepted(tmp_path: Path) -> None:
    chat = tokenizer_with(tmp_path, QWEN3, "yes", "no")
    without = tokenizer_with(tmp_path, ASKS)  # its tokenizer writes each word in several tokens
    for tokenizer, name, words in (
        (chat, "Qwen3-0.6B", "accepted are models whose chat template asks"),
        (None, "Qwen3-Reranker-0.6B", "accepted are models whose chat template asks"),
        (without, "Qwen3-Reranker-0.6B", "no tokens for yes and no"),
        (load_tokenizer(str(TOKENIZER)), "fake", "accepted are models whose chat template asks"),
    ):
        with pytest.raises(RequestError, match=words):
            find_judge(tokenizer, [name])


def test_a_document_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    angry = QWEN3 + "{% if 'bad' in messages[1].content %}{{ raise_exception('Not that.') }}{% endif %}"
    judge = find_judge(tokenizer_with(tmp_path, angry, "yes", "no"), ["a-reranker"])
    with pytest.raises(RequestError, match=r"documents\[1\]: .*Not that\.") as caught:
        judge.prompts("Where?", ["good", "bad"], None, 4096)
    assert caught.value.field == "documents[1]"
