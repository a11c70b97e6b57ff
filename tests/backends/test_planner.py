"""Plans from arithmetic alone: what fits, how layouts rank, and what is refused with which numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

import radixmesh
from radixmesh.backends.planner import FACTS
from radixmesh.engine.errors import ConfigError, ModelError
from radixmesh.engine.plan import Plan

GIB = 2**30


def planned(model: str, topology: str, **options: Any) -> Plan:
    return radixmesh.plan(model_path=model, topology=topology, compile=False, **options)


def test_one_chip() -> None:
    """Llama-3.1-8B in bfloat16 takes 16.06 GB; a token 32 layers x 2 x 8 heads x 128 x 2 bytes and 4."""
    found = planned("llama-3.1-8b", "v6e:1x1", context_length=4096)
    (layout,) = found.layouts
    assert layout.weight_bytes == 8_030_261_248 * 2
    assert layout.token_bytes == 131_072 + 4
    budget = int(0.9 * int(31.24 * GIB)) - layout.weight_bytes
    assert layout.pool_tokens == budget // (64 * 131_076) * 64
    assert layout.requests[4096] == layout.pool_tokens // 4096
    assert layout.requests[131072] == 0
    one = layout.steps[0]
    assert (one.kind, one.rows, one.bound) == ("decode", 1, "memory")
    weights = 2 * (8_030_261_248 - 128_256 * 4096)  # the embedding is looked up
    assert one.seconds == pytest.approx((weights + 4096 * 131_072) / 1640e9)
    assert layout.steps[-1].kind == "prefill" and layout.steps[-1].bound == "compute"


def test_all_layouts_of_a_slice_ranked() -> None:
    found = planned("llama-3.1-8b", "v6e:2x4")
    assert {(each.data, each.tensor) for each in found.layouts} == {(8, 1), (4, 2), (2, 4), (1, 8)}
    speeds = [max(s.tokens_a_second for s in each.steps if s.kind == "decode") for each in found.layouts]
    assert speeds == sorted(speeds, reverse=True)
    for layout in found.layouts:
        used = layout.weight_bytes + layout.pool_bytes
        assert used <= 0.9 * found.hbm_bytes < used + 64 * layout.token_bytes * 1.01
        assert layout.pool_tokens * layout.token_bytes == layout.data * layout.pool_bytes


def test_kv_heads_are_repeated_where_there_are_fewer_than_devices() -> None:
    four, eight = (planned("gemma-3-4b", "v6e:2x4", tp_size=size).layouts[0] for size in (4, 8))
    assert four.token_bytes == eight.token_bytes  # 4 KV heads


def test_only_layouts_that_fit_are_offered_and_the_others_named() -> None:
    found = planned("llama-3.3-70b", "v6e:2x4")
    assert [(each.data, each.tensor) for each in found.layouts] == [(1, 8)]
    assert sorted((each.data, each.tensor) for each in found.refused) == [(2, 4), (4, 2), (8, 1)]
    assert all("too little" in str(each.refusal) for each in found.refused)


@pytest.mark.parametrize("asked", [{"mesh": "data=2,tensor=4"}, {"dp_size": 2}, {"tp_size": 4}])
def test_a_layout_can_be_asked_for(asked: dict[str, Any]) -> None:
    (layout,) = planned("llama-3.1-8b", "v6e:2x4", **asked).layouts
    assert (layout.data, layout.tensor) == (2, 4)


def test_chosen_rows_and_automatic_choices() -> None:
    found = planned(
        "qwen3-0.6b",
        "v5e:1x1",
        rows=(16,),
        max_running_requests=32,
        kv_cache_dtype="float32",
        context_length=512,
    )
    assert [step.rows for step in found.layouts[0].steps] == [16, 32, 1]
    told = {choice.name: choice.value for choice in found.choices}
    assert told["max_running_requests"] == 32 and told["page_size"] == 64
    assert found.layouts[0].token_bytes == 28 * 2 * 8 * 128 * 4 + 4


def test_a_config_file_or_its_folder_will_do(tmp_path: Path) -> None:
    config = json.loads((FACTS / "qwen3-8b.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 18}))
    by_folder, by_file = (planned(str(each), "v5e:2x2") for each in (tmp_path, tmp_path / "config.json"))
    assert by_folder.layouts == by_file.layouts
    whole = planned("qwen3-8b", "v5e:2x2").layouts[0]
    assert by_file.layouts[0].weight_bytes < 0.6 * whole.weight_bytes


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"topology": "v6e:3x3"}, "topology is 'v6e:3x3'; the slices of TPU v6e are v6e:1x1, "),
        ({"topology": "h100:8"}, "topology is 'h100:8'; accepted are "),
        ({"topology": "cpu:8"}, "topology is 'cpu:8'; a plan is for a TPU slice"),
        ({"mesh": "tensor=4"}, "a mesh of data=1,tensor=4 does not multiply out to the 8 devices of v6e:2x4"),
        ({"mesh": "tensor=four"}, "mesh is 'tensor=four'; accepted are "),
        ({"mesh": "tensor=8", "tp_size": 4}, "mesh is 'tensor=8', but dp_size is None and tp_size is 4"),
        ({"tp_size": 3}, "tensor is 3, .*32 heads, 8 KV heads .*; accepted are 1, 2, 4, 8, 16, 32"),
        ({"context_length": 200_000}, "context_length is 200000; accepted is at most 131072"),
        ({"page_size": 48}, "page_size is 48; accepted is a power of two"),
        ({"dtype": "int4"}, "dtype is 'int4'; accepted are"),
        ({"rows": (0,)}, "rows is "),
    ],
)
def test_refusals(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        planned(**{"model": "llama-3.1-8b", "topology": "v6e:2x4", **options})


def test_what_does_not_fit_is_told_by_how_much_and_what_would_do() -> None:
    """131.42 GiB of weights and 8,192 tokens of 327,684 bytes, against 0.9 of 31.24 GiB."""
    with pytest.raises(ConfigError) as refused:
        planned("llama-3.3-70b", "v6e:1x1")
    assert str(refused.value) == (
        "llama-3.3-70b does not fit v6e:1x1: weights of 131.42 GiB and one request of 8192 tokens need"
        " 133.92 GiB a device; 0.9 of TPU v6e's 31.24 GiB is 28.12 GiB, 105.80 GiB too little; the smallest"
        " slice that would do is v6e:2x4"
    )
    assert planned("llama-3.3-70b", "v6e:2x4").layouts
    with pytest.raises(ConfigError):
        planned("llama-3.3-70b", "v6e:2x2")


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="a plan also knows gemma-3-27b, .*qwen3-8b"):
        planned("no-such-model", "v6e:1x1")
