"""`radixmesh generate` with the fake backend, whose bytes can be computed by hand."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from radixmesh.__main__ import main
from radixmesh.backends.fake.oracle import expected_tokens

IM_END = 258


def answer_ids(prompt: str, count: int) -> list[int]:
    ids = expected_tokens(list(prompt.encode()), count, 259, stop=[IM_END])
    return ids


def answer(prompt: str, count: int = 12) -> str:
    """Ids below 256 are bytes; those above are special and show nothing."""
    return bytes(each for each in answer_ids(prompt, count) if each < 256).decode(errors="replace")


def chat_ids(text: str) -> list[int]:
    """ChatML as the fake backend's template writes it: 257 and 258 open and close a message."""
    return [257, *f"user\n{text}".encode(), 258, *b"\n", 257, *b"assistant\n"]


def generate(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    fixed = ["--backend", "fake", "--temperature", "0", "--max-new-tokens", "12"]
    assert main(["generate", *fixed, *arguments]) == 0
    return capsys.readouterr().out


class FakeStdin(io.StringIO):
    def __init__(self, text: str, terminal: bool) -> None:
        super().__init__(text)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_one_prompt_is_streamed_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(capsys, "hello") == answer("hello") + "\n"


def test_several_prompts_have_headings(capsys: pytest.CaptureFixture[str]) -> None:
    out = generate(capsys, "one", "two  " + "x" * 90)
    assert out == f"--- one\n{answer('one')}\n\n--- two {'x' * 63}...\n{answer('two  ' + 'x' * 90)}\n"


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = map(
        json.loads, generate(capsys, "one", "two", "--json-lines", "--logprobs", "1").splitlines()
    )
    assert first["prompt"] == "one" and second["prompt"] == "two"
    assert first["token_ids"] == answer_ids("one", 12)
    assert second["text"] == answer("two")
    assert first["num_prompt_tokens"] == 3 and first["num_cached_tokens"] == 0
    assert first["finish_reason"] == ("stop" if IM_END in first["token_ids"] else "length")
    assert len(first["logprobs"]) == len(first["token_ids"]) and len(first["logprobs"][0]["top_ids"]) == 1


def test_n_texts_of_one_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(each) for each in generate(capsys, "one", "--n", "3", "--json-lines").splitlines()]
    assert [each["index"] for each in lines] == [0, 1, 2]
    assert {each["prompt"] for each in lines} == {"one"}


def test_text_file_and_output_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\n\ntwo\n")
    out = tmp_path / "out.jsonl"
    shown = generate(capsys, "--input", str(tmp_path / "in.txt"), "--output", str(out), "--json-lines")
    assert shown == ""
    assert [json.loads(each)["text"] for each in out.read_text().splitlines()] == [
        answer("one"),
        answer("two"),
    ]


def test_jsonl_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    banned = {str(answer_ids("one", 1)[0]): -100}
    entries: list[dict[str, Any]] = [
        {"prompt": "one", "id": "a"},
        {"prompt": [116, 119, 111], "sampling_params": {"max_new_tokens": 3}},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"prompt": "one", "sampling_params": {"max_new_tokens": 1, "logit_bias": banned}},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, entries)))
    out = generate(capsys, "--input", str(tmp_path / "in.jsonl"), "--json-lines")
    lines = [json.loads(each) for each in out.splitlines()]
    assert lines[0]["id"] == "a" and lines[0]["text"] == answer("one")
    assert lines[1]["token_ids"] == answer_ids("two", 3)
    assert lines[2]["messages"] == entries[2]["messages"]
    assert lines[2]["token_ids"] == expected_tokens(chat_ids("hi"), 12, 259, stop=[IM_END])
    assert lines[3]["token_ids"] == [answer_ids("one", 1)[0] + 1]  # the fake takes the next id upwards


def test_stdin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", FakeStdin("one\ntwo\n", terminal=False))
    lines = generate(capsys, "--json-lines").splitlines()
    assert [json.loads(each)["prompt"] for each in lines] == ["one", "two"]


@pytest.mark.parametrize("more", [[], ["--json-lines"]])
def test_chat_applies_the_template(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    ids = expected_tokens(chat_ids("hi"), 12, 259, stop=[IM_END])
    out = generate(capsys, "hi", "--chat", *more)
    if more:
        assert json.loads(out)["token_ids"] == ids
    else:
        assert out == bytes(each for each in ids if each < 256).decode(errors="replace") + "\n"


def test_without_a_tokenizer_ids_go_in_and_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": [116, 119, 111]}')
    out = generate(capsys, "--input", str(tmp_path / "in.jsonl"), "--skip-tokenizer-init")
    assert list(map(int, out.split())) == answer_ids("two", 12)


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "line 2 is wrong"),
        ("[]", "either prompt or messages"),
        ('{"prompt": "a", "messages": []}', "either prompt or messages"),
        ('{"prompt": "a", "temperature": 1}', "temperature is not known"),
        ('{"prompt": "a", "sampling_params": {"temp": 1}}', "sampling_params has temp"),
        ('{"prompt": "a", "sampling_params": {"top_p": 2}}', "top_p is 2"),
        ('{"prompt": "a", "sampling_params": {"max_new_tokens": "x"}}', "max_new_tokens"),
    ],
)
def test_wrong_lines_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, said: str
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "fine"}\n' + line)
    assert main(["generate", "--backend", "fake", "--input", str(tmp_path / "in.jsonl")]) == 2
    error = capsys.readouterr().err
    assert said in error and "line 2" in error and error.count("\n") == 1


def test_what_cannot_be_done_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    monkeypatch.setattr(sys, "stdin", FakeStdin("", terminal=True))
    for arguments, said in [
        ([], "there is no prompt"),
        (["a", "--input", "b"], "accepted is one of both"),
        (["--input", "/nowhere/x"], "/nowhere/x"),
        (["--input", str(tmp_path / "empty.txt")], "has no prompt"),
        (["a", "--output", "/nowhere/x"], "/nowhere/x"),
        (["a", "--skip-tokenizer-init"], "skip_tokenizer_init"),
        (["a", "b", "--chat", "--skip-tokenizer-init"], "skip_tokenizer_init"),
    ]:
        assert main(["generate", "--backend", "fake", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error.splitlines()[-1] and error.splitlines()[-1].startswith("radixmesh: error: ")
