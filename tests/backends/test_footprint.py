"""What one device holds and does, against known sizes, real shardings and counting by hand."""

import jax
import jax.numpy as jnp
import pytest

from radixmesh.backends.footprint import Footprint, tensor_sizes
from radixmesh.backends.jax.loader import abstract_param
from radixmesh.backends.jax.pages import token_bytes
from radixmesh.backends.jax.params import mesh_params
from radixmesh.backends.models.describe import read_spec
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.partition import partition
from radixmesh.backends.models.spec import LayerSpec, ModelSpec
from radixmesh.backends.planner import facts_names, plan_source
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.plan import PlanOptions
from radixmesh.sharding.mesh import MeshSpec, make_mesh
from radixmesh.sharding.report import device_bytes
from radixmesh.sharding.rules import ShardingRules

# of the language model, as its publishers count them
PARAMETERS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b": 70_553_706_496,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-27b": 27_009_346_304,
}


def spec_of(name: str) -> ModelSpec:
    return read_spec(plan_source(PlanOptions(model_path=name, topology="v6e:1x1")))


def test_facts_have_the_known_numbers_of_parameters() -> None:
    assert facts_names() == sorted(PARAMETERS)
    assert {name: Footprint(spec_of(name), 1, 1, 1, 1).weight_bytes for name in PARAMETERS} == PARAMETERS


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("name", PARAMETERS)
def test_shares_are_those_of_the_real_shardings(name: str, tensor: int) -> None:
    spec, dtype, rules = spec_of(name), jnp.dtype("bfloat16"), ShardingRules()
    mesh = make_mesh(jax.devices(), MeshSpec(1, tensor))
    params = mesh_params(param_table(spec))
    arrays = [abstract_param(each, spec.num_layers, dtype, mesh, rules) for each in params]
    footprint = Footprint(spec, 1, tensor, 2, 2)
    assert footprint.weight_bytes == device_bytes(arrays)
    assert footprint.token_bytes == token_bytes(partition(spec, tensor), dtype, tensor)


TINY = ModelSpec(
    family="llama", vocab_size=10, hidden_size=4, intermediate_size=6, num_heads=4, num_kv_heads=2,
    head_dim=2, layers=(LayerSpec(), LayerSpec(window=3)), context_length=64, norm_eps=1e-5,
    attention_scale=1.0, tie_embeddings=False,
)  # fmt: skip


def test_a_decode_step_by_hand() -> None:
    """5 rows in 2 groups of 2 devices: 3 rows, 2 heads and 1 KV head a device; 7 keys, 3 in the window."""
    work = Footprint(TINY, 2, 2, 2, 1).decode(rows=5, context=7)
    layer = 4 * 2 * 2 + 2 * 4 * 1 * 2 + 2 * 2 * 4 + 3 * 4 * 3  # q, k and v, o, MLP: one device's elements
    norms, table = 2 * 2 * 4 + 4, 10 * 4 // 2
    keys = 3 * (7 + 3)
    assert work.hbm_bytes == 2 * (2 * layer + norms + table) + keys * 2 * 1 * 2 * 1
    assert work.flops == 2 * 3 * (2 * layer + table) + keys * 2 * (2 * 2 + 2 * 2)
    (sums,) = work.collectives
    assert (sums.kind, sums.group_size, sums.bytes, sums.count) == ("all-reduce", 2, 3 * 4 * 2, 5)


def test_a_prefill_counts_the_keys_that_each_token_sees() -> None:
    alone = Footprint(TINY, 1, 1, 2, 2)
    seen = sum(position + 1 for position in range(9)) + sum(min(position + 1, 3) for position in range(9))
    matrices = alone.prefill(9).flops - seen * 4 * 4 * 2
    assert matrices == 2 * (9 * 2 * (4 * 8 + 2 * 4 * 4 + 8 * 4 + 3 * 4 * 6) + 10 * 4)
    assert alone.prefill(9).collectives == ()


@pytest.mark.parametrize("name", ["gemma-3-4b", "llama-3.1-8b", "qwen3-0.6b"])
def test_sizes_that_split_a_model_are_those_that_the_runner_takes(name: str) -> None:
    spec = spec_of(name)

    def taken(size: int) -> bool:
        try:
            partition(spec, size)
        except ConfigError:
            return False
        return True

    assert tensor_sizes(spec) == [size for size in range(1, spec.num_heads + 1) if taken(size)]
