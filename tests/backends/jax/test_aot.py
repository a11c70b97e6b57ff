"""The step that serves, compiled for TPU slices that are not here: a small part of `docs/tpu-matrix.md`.

Whole models by their config.json facts, our attention kernel inside. What is asserted is what the compiler
made of them: memory, aliasing, transfers, and the bytes that a step moves.
"""

from typing import Any

import pytest

from radixmesh.backends.planner import make_plan
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.plan import LayoutPlan, Plan, PlanOptions, StepPlan, Transfer

ROWS = 8


def compiled(model: str, topology: str, kind: str = "decode", **options: Any) -> tuple[Plan, StepPlan]:
    """The plan of a model over all devices of a slice, and its one step of that kind, compiled."""
    asked = PlanOptions(model_path=model, topology=topology, rows=(ROWS,), context_length=2048, **options)
    plan = make_plan(asked, lambda step: step.kind == kind and (step.rows == ROWS or kind == "prefill"))
    (step,) = (each for each in plan.layouts[0].steps if each.compiled)
    return plan, step


def check_memory(plan: Plan, step: StepPlan) -> LayoutPlan:
    """The pool in place, next to nothing besides the arguments, and those as the arithmetic has them."""
    layout, found = plan.layouts[0], step.compiled
    assert found is not None
    assert found.pool_aliased
    assert found.temp_bytes < 0.02 * plan.hbm_bytes
    assert found.argument_bytes == pytest.approx(layout.weight_bytes + layout.pool_bytes, rel=0.05)
    assert found.argument_bytes + found.temp_bytes + found.code_bytes < plan.hbm_bytes
    return layout


def greedy(step: StepPlan) -> list[Transfer]:
    assert step.compiled is not None
    return [each for each in step.compiled.transfers if each.always]


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v6e:1x1", "v5e:2x4", "v6e:2x4", "v5p:2x2x1", "tpu7x:2x2x1"])
def test_a_decode_step_moves_weights_and_live_keys_once(topology: str) -> None:
    devices = {"v6e:1x1": 1, "v5p:2x2x1": 4}.get(topology, 8)
    plan, step = compiled("qwen3-0.6b", topology, tp_size=devices)
    check_memory(plan, step)
    assert step.compiled is not None
    assert step.compiled.hbm_bytes < 1.10 * step.hbm_bytes
    assert step.compiled.hbm_bytes > 0.95 * step.hbm_bytes  # nothing goes uncounted
    assert step.compiled.seconds == pytest.approx(step.seconds, rel=0.1) and step.compiled.bound == step.bound
    hidden, layers = 1024, 28
    sums = Transfer(kind="all-reduce", devices=devices, bytes=ROWS * hidden * 2, count=2 * layers + 1)
    words = Transfer(kind="all-gather", devices=devices, bytes=devices * 2 * ROWS * 4, count=1)
    assert greedy(step) == ([sums, words] if devices > 1 else [])


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4"])
def test_eight_billion_parameters(topology: str) -> None:
    plan, step = compiled("llama-3.1-8b", topology, tp_size=8)
    layout = check_memory(plan, step)
    assert step.compiled is not None and step.compiled.hbm_bytes < 1.10 * step.hbm_bytes
    assert layout.pool_tokens > 700_000
    assert [(each.kind, each.count) for each in greedy(step)] == [("all-reduce", 65), ("all-gather", 1)]


@pytest.mark.slow
def test_groups_and_repeated_heads_and_windows() -> None:
    """Gemma 3 4B has 4 KV heads; two groups of four devices serve rows of their own."""
    plan, step = compiled("gemma-3-4b", "v6e:2x4", dp_size=2)
    check_memory(plan, step)
    assert step.tokens == ROWS // 2
    assert step.compiled is not None and step.compiled.hbm_bytes < 1.10 * step.hbm_bytes
    between_groups = [each for each in greedy(step) if each.devices != 4]
    assert [each.bytes for each in between_groups] == [ROWS * 4]  # what was sampled, told to every group


@pytest.mark.slow
def test_a_prefill_chunk() -> None:
    plan, step = compiled("qwen3-0.6b", "v6e:1x1", kind="prefill")
    check_memory(plan, step)
    assert step.tokens == 2048


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_one_sentence() -> None:
    full = PlanOptions(
        model_path="qwen3-0.6b",
        topology="v5e:1x1",
        mem_fraction_static=0.9999,
        rows=(ROWS,),
        context_length=64,
    )
    with pytest.raises(ConfigError, match="qwen3-0.6b does not fit v5e:1x1: .* Ran out of memory") as refused:
        make_plan(full, lambda step: step.rows == ROWS)
    assert "\n" not in str(refused.value)


def test_without_the_compiler_a_plan_is_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radixmesh.sharding.topology.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"pip install 'radixmesh\[tpu-compile\]'; --no-compile plans without it"
    ):
        make_plan(PlanOptions(model_path="qwen3-0.6b", topology="v6e:1x1"))
