"""`radixmesh chat` through a pipe, with the fake backend: what is said, kept, reset and stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from radixmesh.backends.fake.oracle import expected_tokens

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src"), "PYTHONUNBUFFERED": "1"}
CHAT = [sys.executable, "-m", "radixmesh", "chat", "--backend", "fake", "--temperature", "0"]


def chat(*lines: str, options: tuple[str, ...] = (), status: int = 0) -> tuple[bytes, str]:
    done = subprocess.run(
        [*CHAT, "--max-new-tokens", "9", *options],
        input="".join(f"{line}\n" for line in lines).encode(),
        capture_output=True,
        timeout=100,
        env=ENV,
    )
    assert done.returncode == status, done.stderr.decode()
    return done.stdout, done.stderr.decode()


def answer(*messages: tuple[str, str]) -> str:
    """The text after ChatML messages of (role, content)."""
    ids: list[int] = []
    for role, content in messages:
        ids += [257, *f"{role}\n{content}".encode(), 258, *b"\n"]
    ids += [257, *b"assistant\n"]
    out = expected_tokens(ids, 9, 259, stop=[258])
    return bytes(each for each in out if each < 256).decode(errors="replace")


def test_the_conversation_is_kept_until_it_is_reset() -> None:
    first = answer(("user", "hi"))
    second = answer(("user", "hi"), ("assistant", first), ("user", "more"))
    out, err = chat("hi", "more", "", "/reset", "hi", "/exit", "never read")
    assert out.decode() == f"{first}\n{second}\n{first}\n"
    figures = [line for line in err.splitlines() if "tokens/s" in line]
    assert len(figures) == 3
    assert "prompt tokens were cached)" in figures[1] and "; 0 of" not in figures[1]


def test_system_messages() -> None:
    out, err = chat("hi", "/reset", "/system Be kind.", "hi", "/nonsense", options=("--system", "Be brief."))
    first = answer(("system", "Be brief."), ("user", "hi"))
    second = answer(("system", "Be kind."), ("user", "hi"))
    assert out.decode() == f"{first}\n{second}\n"
    assert "/nonsense is not a command" in err


def test_a_turn_that_is_refused_leaves_the_conversation_as_it_was() -> None:
    out, err = chat("hi", "x" * 5000, "more", status=1)
    first = answer(("user", "hi"))
    assert out.decode() == f"{first}\n{answer(('user', 'hi'), ('assistant', first), ('user', 'more'))}\n"
    assert "radixmesh: error: the prompt has" in err


def test_ctrl_c_stops_the_answer_and_nothing_else() -> None:
    # a shell's background job ignores Ctrl-C, and all that it starts inherit that; a handler they do not
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*CHAT, "--ignore-eos", "--context-length", "1000000", "--max-total-tokens", "1000000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdin and process.stdout
    with process:
        try:
            process.stdin.write(b"hi\n")
            process.stdin.flush()
            assert process.stdout.read(1)  # the answer, of a million tokens, has begun
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the engine's process gets it too
            _, err = process.communicate(b"/exit\n", timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0
    assert err.decode().splitlines()[-1] == "(stopped)"
