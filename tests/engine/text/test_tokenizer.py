"""Tokenizer against transformers, and what it refuses."""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from radixmesh.backends.fake.backend import TOKENIZER
from radixmesh.backends.models.embedded import fetch_embedded
from radixmesh.engine.errors import ModelError, RequestError
from radixmesh.engine.text.tokenizer import Tokenizer, load_tokenizer

TEXT = "Grüße, 世界! 🎉 def f(x): return x\n"


@cache
def tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(str(TOKENIZER) if name == "fake" else str(fetch_embedded(name)))


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m", "fake"])
@pytest.mark.parametrize("special", [True, False])
def test_encode_and_decode_as_transformers(name: str, special: bool) -> None:
    ours, fast = tokenizer(name), tokenizer(name).fast
    ids = ours.encode(TEXT, add_special_tokens=special)
    assert ids == fast.encode(TEXT, add_special_tokens=special)
    assert ours.decode(ids) == fast.decode(ids, skip_special_tokens=True) == TEXT
    assert ours.decode(ids, skip_special_tokens=False) == fast.decode(ids)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m", "fake"])
def test_token_bytes_add_up_to_the_text(name: str) -> None:
    ids = tokenizer(name).encode(TEXT, add_special_tokens=False)
    assert b"".join(tokenizer(name).token_bytes(index) for index in ids) == TEXT.encode()


def test_token_text() -> None:
    fake = tokenizer("fake")
    assert fake.token_text(ord("a")) == "a"
    assert fake.token_text(0xE4) == "\ufffd" and fake.token_bytes(0xE4) == b"\xe4"
    assert fake.token_text(258) == "<|im_end|>"
    assert fake.token_bytes(10_000) == b"" and fake.token(10_000) is None
    gemma = tokenizer("gemma3-270m")
    assert gemma.token_text(gemma.encode(" the", add_special_tokens=False)[0]) == " the"


def test_sizes_and_special_ids() -> None:
    assert tokenizer("fake").vocab_size == 259
    assert tokenizer("fake").eos_token_ids == {258}
    assert tokenizer("fake").special_ids == {256, 257, 258}
    assert tokenizer("smollm2-135m-instruct").vocab_size == 49152


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m", "fake"])
def test_a_text_that_is_too_long_is_refused_without_encoding_it(name: str) -> None:
    with pytest.raises(RequestError, match="10000000 characters, at least .* at most 1000 tokens") as caught:
        tokenizer(name).encode("a" * 10_000_000, max_tokens=1000)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m", "fake"])
def test_the_bound_never_refuses_what_fits(name: str) -> None:
    ours = tokenizer(name)
    for text in (" " * 5000, "\n" * 5000, "-" * 5000, "=" * 5000, "a" * 5000, TEXT * 100):
        assert ours.encode(text, max_tokens=len(ours.encode(text))) == ours.encode(text)


@pytest.mark.parametrize("text", ["ab\ud800cd", "\udcff"])
def test_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="lone surrogate at character") as caught:
        tokenizer("fake").encode(text)
    assert caught.value.field == "prompt"


def test_folder_through_transformers_own_class(tmp_path: Path) -> None:
    """A folder that names a class of its own goes through AutoTokenizer."""
    folder = shutil.copytree(TOKENIZER, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "GPT2Tokenizer"}))
    assert load_tokenizer(str(folder)).encode("hi") == list(b"hi")


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_no_tokenizer(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no tokenizer could be loaded.*skip_tokenizer_init"):
        load_tokenizer(str(tmp_path / name))


def test_loading_pulls_in_neither_torch_nor_jax() -> None:
    code = (
        "import sys; from radixmesh.engine.text.tokenizer import load_tokenizer;"
        "import_only = set(sys.modules);"
        f"load_tokenizer({str(TOKENIZER)!r}).encode('hi');"
        "print('transformers' in import_only, {'torch', 'jax'} & set(sys.modules))"
    )
    code = f"import sys; sys.path[:] = {sys.path!r}; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "False set()"


def test_others_run_while_a_long_text_is_encoded() -> None:
    """In a thread, as the server does it: no other thread waits for the whole of it."""
    ours = tokenizer("smollm2-135m-instruct")
    text = "one two three four " * 30_000
    begun, longest = time.perf_counter(), 0.0
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(ours.encode, text)
        last = begun
        while not work.done():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
    assert len(work.result()) > 100_000
    assert longest < (last - begun) / 2


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma3_text", "llama"])
def test_a_folder_without_a_tokenizer_is_told(kind: str, tmp_path: Path) -> None:
    """transformers makes one of special tokens up for some of these, which knows no text."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": 99}))
    with pytest.raises(ModelError, match="tokenizer.*skip_tokenizer_init"):
        load_tokenizer(str(tmp_path))
