"""What travels between devices in a compiled step, by name and size: a stray all-gather fails here."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from radixmesh.backends.jax.buckets import Shape
from radixmesh.backends.jax.decoder import Decoder
from radixmesh.backends.jax.forward_batch import Layout
from radixmesh.backends.jax.loader import abstract_param
from radixmesh.backends.jax.pages import state_shapes
from radixmesh.backends.jax.params import mesh_params
from radixmesh.backends.jax.step import lower_step
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.partition import partition
from radixmesh.backends.models.spec import LayerSpec, ModelSpec
from radixmesh.engine.runner import RunnerCapacity
from radixmesh.kernels.paged_attention.xla import ragged_paged_attention
from radixmesh.sharding.axis import MeshAxis
from radixmesh.sharding.mesh import MeshSpec, make_mesh
from radixmesh.sharding.rules import ShardingRules

TOKENS, ROWS, TOP, ASKED = 16, 8, 20, 64
SPEC = ModelSpec(
    family="llama", vocab_size=509, hidden_size=64, intermediate_size=96, num_heads=8, num_kv_heads=2,
    head_dim=8, layers=(LayerSpec(),) * 5, context_length=64, norm_eps=1e-5, attention_scale=0.35,
    qkv_bias=True, output_bias=True, mlp_bias=True, tie_embeddings=False,
)  # fmt: skip
CAPACITY = RunnerCapacity(
    num_pages=32, page_size=4, max_running_requests=ROWS, max_step_tokens=TOKENS, max_page_indices=64
)


def compiled_step(mesh_spec: MeshSpec, full: bool) -> jax.stages.Compiled:
    mesh, rules = make_mesh(jax.devices(), mesh_spec), ShardingRules()
    params, dtype = mesh_params(param_table(SPEC)), jnp.dtype("float32")
    arrays = {each.name: abstract_param(each, SPEC.num_layers, dtype, mesh, rules) for each in params}
    tensor = MeshAxis("tensor", mesh_spec.tensor)
    definition, weights = nnx.split(Decoder(SPEC, params, arrays, tensor))
    state = state_shapes(partition(SPEC, tensor.size), dtype, CAPACITY, mesh, rules)
    layout = Layout(Shape(TOKENS, full), CAPACITY, SPEC.vocab_size)
    return lower_step(definition, weights, state, layout, mesh, rules, ragged_paged_attention).compile()


def collectives(step: jax.stages.Compiled) -> dict[str, Counter[str]]:
    """For each computation of a step that has any: its collectives, as "operation result"."""
    found: dict[str, Counter[str]] = {}
    operations = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    name = ""
    for line in (step.as_text() or "").splitlines():
        if line.endswith("{"):
            name = line.removeprefix("ENTRY ").split()[0]
        if match := re.search(rf"= \(?(\w+\[[\d,]*\]).* ({operations})(-start)?\(", line):
            found.setdefault(name, Counter())[f"{match[2]} {match[1]}"] += 1
    return found


@pytest.mark.parametrize("mesh", [MeshSpec(tensor=4), MeshSpec(data=2, tensor=4)], ids=str)
def test_a_step_sends_three_sums_and_a_few_words_a_row(mesh: MeshSpec) -> None:
    found = collectives(compiled_step(mesh, full=False))
    whole = f"all-reduce f32[{TOKENS},{SPEC.hidden_size}]"
    layer = [each for each in found.values() if each == Counter({whole: 2})]
    assert len(layer) == 1, "the scanned layer has two sums and nothing else"
    a_row = {
        f"all-gather s32[4,2,{ROWS}]": 2,  # argmax, of logits and of what is drawn from
        f"all-reduce f32[{ROWS},1]": 2,  # largest logit, sum of weights
        f"all-reduce f32[{ROWS},15,1]": 1,  # sum of the weights that each of 15 bars of top-p keeps
        f"all-reduce s32[{ROWS},15,1]": 1,  # how many logits each of top-k's keeps
    }
    if mesh.data > 1:
        a_row[f"all-gather s32[{mesh.data},{ROWS}]"] = 1  # the tokens, for whoever reads them
    assert sum(found.values(), Counter()) == Counter({whole: 3, **a_row})


def test_logprobs_and_penalties_send_twenty_candidates_a_row() -> None:
    found = sum(collectives(compiled_step(MeshSpec(tensor=4), full=True)).values(), Counter())
    assert found == Counter(
        {
            f"all-reduce f32[{TOKENS},{SPEC.hidden_size}]": 3,
            f"all-gather s32[4,2,{ROWS}]": 2,
            f"all-reduce f32[{ROWS},1]": 4,  # log-softmax besides
            f"all-reduce f32[{ROWS},15,1]": 1,
            f"all-reduce s32[{ROWS},15,1]": 1,
            f"all-reduce f32[{ROWS},{1 + ASKED}]": 1,  # logprobs of the chosen token and of asked ones
            f"all-gather f32[4,{ROWS},{TOP}]": 1,
            f"all-gather s32[4,{ROWS},{TOP}]": 1,
        }
    )


def test_one_device_sends_nothing() -> None:
    assert collectives(compiled_step(MeshSpec(), full=True)) == {}


def test_the_pool_is_updated_in_place_on_every_device() -> None:
    memory = compiled_step(MeshSpec(data=2, tensor=4), full=False).memory_analysis()
    heads = max(SPEC.num_kv_heads, 4) // 4
    pool = SPEC.num_layers * (CAPACITY.num_pages + 1) * heads * CAPACITY.page_size * 2 * SPEC.head_dim * 4
    state = pool + (CAPACITY.num_pages + 1) * CAPACITY.page_size * 4 + (ROWS + 1) * 4
    assert memory is not None and memory.alias_size_in_bytes == state
