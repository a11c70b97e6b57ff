"""What start-up tells of its compiled steps, and what the next start finds again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from radixmesh.backends.jax.buckets import Shape, compiled_shapes
from radixmesh.backends.jax.compilation import Compilation, compile_steps, table
from tests.tiny_models import save_tiny_model

SRC = Path(__file__).parents[3] / "src"
START = """
import sys
from radixmesh import LLM
with LLM(sys.argv[1], skip_tokenizer_init=True, max_total_tokens=256, max_running_requests=4,
         chunked_prefill_size=8, page_size=int(sys.argv[3]), compilation_cache_dir=sys.argv[2]):
    pass
"""


def lower(shape: Shape) -> jax.stages.Lowered:
    return jax.jit(lambda x: x * shape.tokens).lower(jnp.ones(shape.tokens))


def test_every_shape_is_compiled_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = [Shape(1, False), Shape(8, False), Shape(8, True)]
    steps = compile_steps(shapes, lower)
    assert [float(steps[shape](jnp.ones(shape.tokens)).sum()) for shape in shapes] == [1, 64, 64]
    said = capsys.readouterr().err
    lines = said[said.index("radixmesh") :].splitlines()  # the progress bar comes first
    assert re.fullmatch(
        r"radixmesh: compiled 3 steps in [\d.]+ s, [0-3] of them found in the cache", lines[0]
    )
    assert [line.split()[:2] for line in lines[2:5]] == [["1", "token"], ["8", "tokens"], ["8", "tokens,"]]
    assert lines[5].split()[0] == "all" and len(lines) == 6


def test_code_is_counted_where_the_platform_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    step = lower(Shape(8, False)).compile()
    done = [Compilation(Shape(size, False), step, seconds) for size, seconds in ((8, 1.25), (16, 3.0))]
    assert [line.split()[-2:] for line in table(done, 4.0, 0)][2:] == [["not", "told"]] * 3
    monkeypatch.setattr(Compilation, "code_bytes", 3 << 19)
    assert [line.split()[-2:] for line in table(done, 4.0, 0)][2:] == [
        ["1.2", "1.5"],
        ["3.0", "1.5"],
        ["4.0", "3.0"],
    ]


@pytest.mark.slow
def test_a_start_finds_what_the_one_before_compiled_unless_a_flag_differs(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "tiny")
    count = len(compiled_shapes(8, 4))

    def found(page_size: int) -> int:
        """How many steps a start with this page size found in the cache."""
        done = subprocess.run(
            [sys.executable, "-c", START, str(tmp_path / "tiny"), str(tmp_path / "cache"), str(page_size)],
            capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONPATH": str(SRC), "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        told = re.search(rf"compiled {count} steps in [\d.]+ s, (\d+) of them", done.stderr)
        assert told, done.stderr
        return int(told[1])

    assert [found(8), found(8), found(16)] == [0, count, 0]
