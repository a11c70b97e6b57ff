"""Parameters in an order of their own: on TPUs by shape, and through the whole runner where there is none."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding

from radixmesh.backends.jax import loader, runner
from radixmesh.backends.jax.formats import param_format
from radixmesh.backends.jax.loader import abstract_param
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.params import ParamSpec
from radixmesh.backends.models.spec import LayerSpec, ModelSpec
from radixmesh.sharding.mesh import MeshSpec, make_mesh
from radixmesh.sharding.rules import ShardingRules
from radixmesh.sharding.topology import Topology
from tests.backends.jax.test_mesh import GREEDY, generate, plain_shape_only, prompts_of  # noqa: F401
from tests.tiny_models import save_tiny_model

SPEC = ModelSpec(
    family="llama", vocab_size=512, hidden_size=256, intermediate_size=512, num_heads=8, num_kv_heads=2,
    head_dim=128, layers=(LayerSpec(),) * 3, context_length=64, norm_eps=1e-5, attention_scale=0.1,
    qkv_bias=True,
)  # fmt: skip
PROJECTION = (0, 2, 3, 1)


def orders(topology: str) -> dict[str, tuple[int, ...] | None]:
    mesh, rules = make_mesh(Topology.parse(topology).devices(), MeshSpec(tensor=4)), ShardingRules()
    made = {p.name: abstract_param(p, 3, jnp.dtype("bfloat16"), mesh, rules) for p in param_table(SPEC)}
    return {name: each.format.layout and each.format.layout.major_to_minor for name, each in made.items()}


def test_projections_only_and_on_tpus_only() -> None:
    on_tpu = {name: order for name, order in orders("v5e:2x2").items() if order is not None}
    assert on_tpu == {"q": PROJECTION, "k": PROJECTION, "v": PROJECTION}
    assert set(orders("cpu:4").values()) == {None}


@pytest.mark.filterwarnings("ignore")  # other people's deprecations
@pytest.mark.usefixtures("plain_shape_only")
def test_the_order_in_memory_changes_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU takes orders as well: weights loaded, steps compiled and run as on a TPU."""
    save_tiny_model("llama", tmp_path)
    prompts = prompts_of(160, 2)
    made: list[Any] = []
    want = generate(prompts, [GREEDY] * 2, model_path=str(tmp_path), tp_size=2)

    def as_on_tpu(param: ParamSpec, sharding: NamedSharding) -> Format | NamedSharding:
        placed = param_format(param, sharding)
        if param.name in "qkv":
            placed = Format(Layout(PROJECTION), sharding)
        return placed

    class Spy(runner.JaxRunner):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            made.extend(x for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array) and x.ndim == 4)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(loader, "param_format", as_on_tpu)
    monkeypatch.setattr(runner, "JaxRunner", Spy)
    got = generate(prompts, [GREEDY] * 2, model_path=str(tmp_path), tp_size=2)
    assert got == want
    assert [x.format.layout.major_to_minor for x in made].count(PROJECTION) == 3
