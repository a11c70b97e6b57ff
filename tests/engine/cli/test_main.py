"""The command line as a whole: instant help, exit statuses, one-line errors."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from radixmesh.engine.cli import main as cli
from radixmesh.engine.cli.joints import Joints, Machine
from radixmesh.engine.errors import EngineDeadError

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
HEAVY = ("jax", "torch", "transformers", "tokenizers", "fastapi", "uvicorn", "zmq", "msgspec", "flax", "gguf")


def no_backend(*arguments: Any) -> Any:
    raise AssertionError("no backend should be asked for")


def small_machine(config: Any) -> Machine:
    return Machine(hardware={"platform": "cpu"}, choices=())


JOINTS = Joints(
    version="9.9",
    find_backend=no_backend,
    survey=small_machine,
    convert=no_backend,
    plan=no_backend,
    slice_hosts=no_backend,
    follow=no_backend,
)


@pytest.mark.parametrize("command", ["", *(each.name for each in cli.COMMANDS)])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom radixmesh.__main__ import main\n"
        f"try: main({[*command.split(), '--help']!r})\nexcept SystemExit as end: assert end.code == 0\n"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=ENV)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: radixmesh")
    assert done.stdout.endswith("HEAVY []\n")


def test_python_dash_m() -> None:
    command = [sys.executable, "-m", "radixmesh", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENV)
    assert done.returncode == 0
    assert done.stdout.startswith("radixmesh 0.")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "required: command"),
        (["serv"], "invalid choice: 'serv'"),
        (["bench"], "required: kind"),
        (["bench", "online"], "invalid choice: 'online'"),
        (["bench", "serve", "--num-promts", "3"], "near are --num-prompts"),
        (["doctor", "--page-size", "0"], "page_size is 0"),
        (["doctor", "--nonsense"], "--nonsense is not an option of radixmesh doctor"),
        (["generate", "x", "--temperature", "-1"], "temperature is -1"),
        (["bench", "latency", "--output-len", "1"], "output_len is 1"),
        (["bench", "offline", "--dataset-name", "jsonl"], "dataset_path"),
        (["serve", "--port", "70000"], "port is 70000"),
        (["plan", "--topology", "v6e:1x1"], "model_path is not given"),
        (["plan", "--model-path", "x", "--topology", "v6e:1x1", "--context", "0"], "context_length is 0"),
    ],
)
def test_errors_are_one_line_and_status_two(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments, JOINTS) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("radixmesh: error: ") and said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("raised, status", [(KeyboardInterrupt(), 130), (EngineDeadError("it died"), 1)])
def test_other_ends(raised: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def survey(config: Any) -> Any:
        raise raised

    joints = Joints(
        version="9.9",
        find_backend=no_backend,
        survey=survey,
        convert=no_backend,
        plan=no_backend,
        slice_hosts=no_backend,
        follow=no_backend,
    )
    assert cli.main(["doctor"], joints) == status
    assert capsys.readouterr().err == ("" if status == 130 else "radixmesh: error: it died\n")


def test_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-u", "-m", "radixmesh", "doctor"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=ENV)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
