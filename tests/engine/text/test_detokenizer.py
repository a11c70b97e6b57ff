"""Incremental detokenization against transformers' own decode of the whole."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from radixmesh.backends.fake.backend import TOKENIZER
from radixmesh.backends.models.embedded import fetch_embedded
from radixmesh.engine.text.detokenizer import IncrementalDetokenizer, _Window
from radixmesh.engine.text.tokenizer import Tokenizer, decoder_kind, load_tokenizer

NAMES = ("smollm2-135m-instruct", "gemma3-270m", "fake", "strips")
TEXTS = (
    "Hello, world!  Two  spaces, a tab\there,\n\n\n   an indent.",
    "  leading spaces, and trailing  ",
    "def f(x):\n    return {'a': x ** 2}  # 100 %\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "今日は良い天気ですね。你好，世界！ 안녕하세요 мир مرحبا שלום हिन्दी ไทย",
    "emoji: 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 and rare: 𓀀𓁐 ᚠᛇᚻ ꙮ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "<|im_start|>user\nhi<|im_end|> <start_of_turn>model\nhi<end_of_turn> <0xE4><0xBD>",
    "\ufffd a real replacement character \ufffd",
)


@cache
def tokenizer(name: str) -> Tokenizer:
    if name == "fake":
        return load_tokenizer(str(TOKENIZER))
    if name == "strips":
        return _llama_like()
    return load_tokenizer(str(fetch_embedded(name)))


def _llama_like() -> Tokenizer:
    """As Llama 2's: a space is put in front of the text, and taken away again."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁a",
        "▁▁",
        "a",
        "b",
        "é",
    ]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "▁")]
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(undo)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def whole(name: str, ids: list[int], skip: bool) -> str:
    fast = tokenizer(name).fast
    text = fast.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def deltas(name: str, ids: list[int], skip: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer(name), skip)
    return [*(detokenizer.add([index]) for index in ids), detokenizer.flush()]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_random_ids(name: str, data: st.DataObject, skip: bool) -> None:
    size = tokenizer(name).vocab_size
    # low ids are special tokens and bytes in all of these vocabularies
    ids = st.integers(0, size + 5) | st.integers(0, min(size, 512))
    drawn = data.draw(st.lists(ids, max_size=40))
    assert "".join(deltas(name, drawn, skip)) == whole(name, drawn, skip)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60), skip=st.booleans())
@example(text=TEXTS[0], skip=True)
@example(text=TEXTS[1], skip=True)
@example(text=TEXTS[2], skip=True)
@example(text=TEXTS[3], skip=True)
@example(text=TEXTS[4], skip=True)
@example(text=TEXTS[5], skip=True)
@example(text=TEXTS[6], skip=False)
@example(text=TEXTS[7], skip=True)
def test_texts(name: str, text: str, skip: bool) -> None:
    ids = tokenizer(name).encode(text)
    assert "".join(deltas(name, ids, skip)) == whole(name, ids, skip)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m", "fake"])
@pytest.mark.parametrize("text", TEXTS[:6])
def test_no_delta_ends_within_a_character(name: str, text: str) -> None:
    ids = tokenizer(name).encode(text, add_special_tokens=False)
    parts = deltas(name, ids, True)
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("name", NAMES)
def test_text_is_not_held_back_longer_than_it_must(name: str) -> None:
    """Plain letters come out with their token."""
    ids = tokenizer(name).encode("ababa", add_special_tokens=False)
    for number in range(1, len(ids) + 1):
        assert "".join(deltas(name, ids[:number], True)[:-1]) == whole(name, ids[:number], True)


def test_several_tokens_at_once() -> None:
    ids = tokenizer("gemma3-270m").encode(TEXTS[4])
    cuts = [0, 1, 3, 4, 9, len(ids)]
    detokenizer = IncrementalDetokenizer(tokenizer("gemma3-270m"))
    parts = [detokenizer.add(ids[begin:end]) for begin, end in pairwise(cuts)]
    assert "".join(parts) + detokenizer.flush() == whole("gemma3-270m", ids, True)


def test_kinds_of_decoders(tmp_path: Path) -> None:
    kinds = {name: decoder_kind(tokenizer(name).decoder) for name in NAMES}
    assert kinds == {
        "smollm2-135m-instruct": "byte_level",
        "gemma3-270m": "sentencepiece",
        "fake": "byte_level",
        "strips": "sentencepiece",
    }
    assert decoder_kind({}) == "other"
    assert decoder_kind({"type": "Metaspace", "replacement": "▁"}) == "other"


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "strips"])
@pytest.mark.parametrize("text", TEXTS)
def test_window_serves_any_decoder(name: str, text: str) -> None:
    window = _Window(tokenizer(name))
    ids = tokenizer(name).encode(text)
    parts = [window.add(index) for index in ids] + [window.flush()]
    assert "".join(parts) == whole(name, ids, False)


def test_window_stays_small() -> None:
    """Bytes that never become a character are not kept for ever."""
    window = _Window(tokenizer("fake"))
    for _ in range(1000):
        window.add(0xFF)
        assert len(window._ids) <= 2 * _Window.LONGEST
