"""Filling in the middle: prompts as the papers of each model family write them."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from radixmesh.backends.fake.backend import TOKENIZER
from radixmesh.engine.text.fim import fim_marks, fim_prompt
from radixmesh.engine.text.tokenizer import Tokenizer, load_tokenizer

PREFIX, SUFFIX = "def f(x):\n    return ", "\n\nprint(f(1))"


def with_marks(folder: Path, *marks: str) -> Tokenizer:
    """The fake model's tokenizer, a byte a token, and `marks` after them as special tokens."""
    data = json.loads((TOKENIZER / "tokenizer.json").read_text())
    for mark in marks:
        added = {"id": 259 + marks.index(mark), "content": mark, "special": True}
        data["added_tokens"].append(
            added | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        )
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text((TOKENIZER / "tokenizer_config.json").read_text())
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "marks",
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ],
)
def test_the_families_prompts(tmp_path: Path, marks: tuple[str, str, str]) -> None:
    tokenizer = with_marks(tmp_path, *marks)
    found = fim_marks(tokenizer)
    assert found == (259, 260, 261)
    ids = fim_prompt(tokenizer, found, PREFIX, SUFFIX)
    text = marks[0] + PREFIX + marks[1] + SUFFIX + marks[2]
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert fim_prompt(tokenizer, found, list(PREFIX.encode()), SUFFIX) == ids


def test_a_vocabulary_without_all_three_has_none(tmp_path: Path) -> None:
    assert fim_marks(load_tokenizer(str(TOKENIZER))) is None
    assert fim_marks(with_marks(tmp_path, "<fim_prefix>", "<fim_suffix>")) is None


def test_code_llama_begins_the_prefix_with_a_space_and_not_the_suffix() -> None:
    tokens = ["<unk>", "<s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "☺", "▁", "a", "b", "▁a"]
    bpe = models.BPE({token: index for index, token in enumerate(tokens)}, [("▁", "a")], unk_token="<unk>")
    backend = Backend(bpe)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    tokenizer = Tokenizer(fast)
    marks = fim_marks(tokenizer)
    assert marks == (2, 3, 4)
    names = [tokenizer.token(index) for index in fim_prompt(tokenizer, marks, "ab", "ab")]
    assert names == ["▁<PRE>", "▁a", "b", "▁<SUF>", "a", "b", "▁<MID>"]


def test_a_text_begins_as_the_tokenizer_begins_texts() -> None:
    """BOS stands before the first mark where the tokenizer puts one before every text."""
    from tests.engine.text.test_tokenizer import tokenizer

    gemma = tokenizer("gemma3-270m")
    ids = fim_prompt(gemma, (10, 11, 12), PREFIX, SUFFIX)
    assert ids[:2] == [gemma.fast.bos_token_id, 10] and ids.count(gemma.fast.bos_token_id) == 1
    middle = ids.index(11)
    assert gemma.decode(ids[2:middle]) == PREFIX and gemma.decode(ids[middle + 1 : -1]) == SUFFIX
    assert fim_prompt(gemma, (10, 11, 12), [5, 6], SUFFIX)[:3] == [10, 5, 6]
