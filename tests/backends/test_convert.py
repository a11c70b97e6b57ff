"""`radixmesh convert`: what is restored equals what was loaded, bit by bit; what is damaged is refused."""

import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from radixmesh.backends.convert import convert
from radixmesh.backends.jax import orbax_checkpoint
from radixmesh.backends.jax.loader import load_params
from radixmesh.backends.jax.params import mesh_params
from radixmesh.backends.models.checkpoint import open_checkpoint
from radixmesh.backends.models.describe import describe, read_spec
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.source import WEIGHTS, find_model
from radixmesh.backends.models.weights import dummy_params, iterate_params
from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError, ModelError
from radixmesh.sharding.mesh import MeshSpec, make_mesh
from radixmesh.sharding.rules import ShardingRules
from tests.tiny_gguf import ARCHITECTURES, llama3_factors, write_gguf
from tests.tiny_models import CONFIGS, save_tiny_model


def config_of(path: Path, **options: Any) -> EngineConfig:
    return EngineConfig(model_path=str(path), skip_tokenizer_init=True, **options)


def loaded(path: Path, dtype: str = "float32", tensor: int = 1) -> dict[str, jax.Array]:
    """Every parameter of the model at `path` on a mesh, by the way that its format takes."""
    source = find_model(config_of(path))
    spec = read_spec(source)
    params = param_table(spec)
    if source.orbax:
        weights = orbax_checkpoint.stored_params(source.orbax, params, spec.num_layers)
    else:
        weights = iterate_params(spec, params, open_checkpoint(source))
    mesh = make_mesh(jax.devices(), MeshSpec(tensor=tensor))
    return load_params(weights, mesh_params(params), spec.num_layers, jnp.dtype(dtype), mesh, ShardingRules())


def stored(path: Path) -> dict[str, np.ndarray]:
    """Every parameter of the table as the model at `path` stores it, layers stacked."""
    source = find_model(config_of(path))
    spec = read_spec(source)
    layers: dict[str, list[np.ndarray]] = {}
    for param, _, array in iterate_params(spec, param_table(spec), open_checkpoint(source)):
        layers.setdefault(param.name, []).append(np.asarray(array))
    stacked = {param.name for param in param_table(spec) if param.stacked}
    return {name: np.stack(each) if name in stacked else each[0] for name, each in layers.items()}


def assert_same_model(original: Path, converted: Path, dtype: str = "float32", tensor: int = 1) -> None:
    wanted, got = loaded(original, dtype, tensor), loaded(converted, dtype, tensor)
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        assert (got[name].dtype, got[name].sharding) == (array.dtype, array.sharding)
        assert np.asarray(got[name]).tobytes() == np.asarray(array).tobytes(), name
    infos = []
    for path in (original, converted):
        config = config_of(path, served_model_name="tiny")
        info = describe(config, find_model(config))
        infos.append((info.vocab_size, info.context_length, info.eos_token_ids, info.default_sampling))
    assert infos[0] == infos[1]
    assert read_spec(find_model(config_of(original))) == read_spec(find_model(config_of(converted)))


@pytest.fixture(params=[False, True], ids=["whole", "cut"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tensors are cut into files and chunks as large ones are, or not at all."""
    if request.param:
        monkeypatch.setattr(orbax_checkpoint, "CHUNK", 500)
        monkeypatch.setattr(orbax_checkpoint, "FILE", 2000)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("name", CONFIGS)
def test_safetensors_of_every_family(name: str, tmp_path: Path) -> None:
    save_tiny_model(name, tmp_path / "hf", dtype="bfloat16")
    convert(config_of(tmp_path / "hf"), tmp_path / "new")
    assert_same_model(tmp_path / "hf", tmp_path / "new")
    assert_same_model(tmp_path / "hf", tmp_path / "new", "bfloat16", tensor=2)
    assert_same_model(tmp_path / "hf", tmp_path / "new", "bfloat16", tensor=4)  # each KV head twice


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gguf_of_every_family(name: str, tmp_path: Path) -> None:
    model = save_tiny_model(name, tmp_path / "hf", intermediate_size=64)
    factors = {}
    if name == "llama":
        model.config.rope_parameters = dict(rope_type="default", rope_theta=500000.0)
        factors = {"rope_freqs.weight": llama3_factors()[::2]}
    path = tmp_path / "tiny.gguf"
    write_gguf(path, model, ARCHITECTURES[name], "Q8_0", tensors=factors)
    convert(config_of(path), tmp_path / "new")
    assert_same_model(path, tmp_path / "new", tensor=2)
    assert (tmp_path / "new" / "model.gguf").stat().st_size < path.stat().st_size / 2


def test_orbax_itself_restores_it(tmp_path: Path) -> None:
    save_tiny_model("qwen3", tmp_path / "hf", dtype="bfloat16")
    convert(config_of(tmp_path / "hf"), tmp_path / "new")
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "new" / WEIGHTS)
    wanted = stored(tmp_path / "hf")
    assert restored.keys() == wanted.keys()
    for name, array in wanted.items():
        assert restored[name].dtype == array.dtype
        np.testing.assert_array_equal(restored[name], array)


def test_a_large_tensor_is_cut_where_a_mesh_cuts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Chunks divide the split axis, weigh a megabyte or more, and lie in files of at most FILE bytes."""
    monkeypatch.setattr(orbax_checkpoint, "CHUNK", 500)
    monkeypatch.setattr(orbax_checkpoint, "FILE", 2000)
    save_tiny_model("llama", tmp_path / "hf")
    convert(config_of(tmp_path / "hf"), tmp_path / "new")

    layouts = {}
    for name in ("q", "k", "o", "gate", "down", "embed", "attn_norm"):
        spec = {"driver": "zarr3", "kvstore": f"file://{tmp_path / 'new' / WEIGHTS / name}/"}
        layout = tensorstore.open(spec).result().chunk_layout
        layouts[name] = (layout.read_chunk.shape, layout.write_chunk.shape)
    assert layouts == {
        "q": ((1, 32, 1, 8), (1, 32, 1, 8)),  # of [3, 32, 4, 8]: a head of 1,024 bytes
        "k": ((1, 32, 1, 8), (1, 32, 1, 8)),
        "o": ((1, 1, 8, 32), (1, 1, 8, 32)),
        "gate": ((1, 32, 4), (1, 32, 12)),  # of [3, 32, 48]
        "down": ((1, 4, 32), (1, 12, 32)),
        "embed": ((4, 32), (8, 32)),  # of [160, 32]
        "attn_norm": ((1, 32), (1, 32)),
    }


def test_only_what_is_sliced_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(orbax_checkpoint, "CHUNK", 500)
    save_tiny_model("llama", tmp_path / "hf")
    convert(config_of(tmp_path / "hf"), tmp_path / "new")
    file = tmp_path / "new" / WEIGHTS / "q/c/1/0/0/0"  # four heads of layer 1, a kilobyte each
    data = bytearray(file.read_bytes())
    data[:1024] = bytes(1024)  # the first
    file.write_bytes(data)
    spec = read_spec(find_model(config_of(tmp_path / "new")))
    params = [param for param in param_table(spec) if param.name == "q"]
    layers = [array for _, _, array in orbax_checkpoint.stored_params(file.parents[5], params, 3)]
    np.testing.assert_array_equal(layers[1][:, 2:4][:, 1], stored(tmp_path / "hf")["q"][1, :, 3])
    assert np.asarray(layers[0]).shape == (32, 4, 8)
    with pytest.raises(ModelError, match="/q is no complete array"):
        np.asarray(layers[1][:, :2])


def test_dtype_is_kept_or_chosen(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "hf", dtype="float16")
    convert(config_of(tmp_path / "hf"), tmp_path / "kept")
    done = convert(config_of(tmp_path / "hf", dtype="float32"), tmp_path / "wide")
    assert_same_model(tmp_path / "hf", tmp_path / "kept")
    assert_same_model(tmp_path / "hf", tmp_path / "wide")
    assert done.weights > 4 * sum(array.size for array in loaded(tmp_path / "hf").values())
    assert 0 < done.memory_before <= done.peak_memory and done.seconds > 0


def test_no_more_than_one_tensor_is_held(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "hf")
    spec = read_spec(find_model(config_of(tmp_path / "hf")))
    alive: list[int] = []
    held: list[weakref.ref[np.ndarray]] = []

    def watched(weights: Iterator[Any]) -> Iterator[Any]:
        for param, layer, array in weights:
            alive.append(sum(each() is not None for each in held))
            own = array.copy()
            held.append(weakref.ref(own))
            yield param, layer, own
            del own

    orbax_checkpoint.write_params(
        tmp_path / "new",
        lambda param: watched(dummy_params(spec, [param])),
        param_table(spec),
        spec.num_layers,
        None,
    )
    assert len(alive) == 30 and max(alive) <= 1  # the one before, until the next takes its name


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (flip, "gate/c/1/0/0"),
    "a byte": (cut_short, "gate/c/2/0/0"),
    "a file": (Path.unlink, "gate/c/0/0/0"),
    "an array": (shutil.rmtree, "gate"),
    "a description": (Path.unlink, "gate/zarr.json"),
}


@pytest.mark.parametrize("lost", DAMAGES)
def test_a_damaged_checkpoint_is_named(lost: str, tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "hf")
    convert(config_of(tmp_path / "hf"), tmp_path / "new")
    damage, where = DAMAGES[lost]
    damage(tmp_path / "new" / WEIGHTS / where)
    with pytest.raises(
        ModelError, match=f"{tmp_path}/new/{WEIGHTS}/gate is no complete array.*convert again"
    ):
        loaded(tmp_path / "new")


def test_another_models_checkpoint_is_named(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "hf")
    save_tiny_model("llama-biased", tmp_path / "other")
    convert(config_of(tmp_path / "hf"), tmp_path / "new")
    shutil.copy(tmp_path / "other" / "config.json", tmp_path / "new")
    with pytest.raises(ModelError, match=f"{WEIGHTS}/q_bias is no complete array"):
        loaded(tmp_path / "new")
    save_tiny_model("llama", tmp_path / "wide", intermediate_size=64)
    shutil.copy(tmp_path / "wide" / "config.json", tmp_path / "new")
    with pytest.raises(ModelError, match=r"/gate has shape \(3, 32, 48\).*says \(3, 32, 64\)"):
        loaded(tmp_path / "new")


def test_what_fails_leaves_nothing_and_what_is_unfinished_is_refused(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "hf")
    shutil.copytree(tmp_path / "hf", tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="beyond the end"):
        convert(config_of(tmp_path / "broken"), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "hf"]

    convert(config_of(tmp_path / "hf"), tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    shutil.copytree(tmp_path / "whole" / WEIGHTS, tmp_path / "killed" / f"{WEIGHTS}.orbax-checkpoint-tmp")
    with pytest.raises(ModelError, match="killed', a folder that radixmesh convert did not finish"):
        find_model(config_of(tmp_path / "killed"))


def test_what_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "hf")
    convert(config_of(tmp_path / "hf"), tmp_path / "new")
    with pytest.raises(ConfigError, match="new', which exists"):
        convert(config_of(tmp_path / "hf"), tmp_path / "new")
    with pytest.raises(ConfigError, match="is an Orbax checkpoint already"):
        convert(config_of(tmp_path / "new"), tmp_path / "newer")
    with pytest.raises(ConfigError, match="load_format is 'dummy'"):
        convert(config_of(tmp_path / "hf", load_format="dummy"), tmp_path / "newer")
    for path, format in (("hf", "orbax"), ("new", "safetensors"), ("new", "gguf")):
        with pytest.raises(ConfigError, match=f"load_format is '{format}'"):
            find_model(config_of(tmp_path / path, load_format=format))
    assert find_model(config_of(tmp_path / "new", load_format="orbax")).load_format == "orbax"


def test_a_runner_starts_from_it(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "hf")
    convert(config_of(tmp_path / "hf"), tmp_path / "new")
    config = config_of(tmp_path / "new", max_total_tokens=64, disable_compilation_cache=True)
    backend = backend_for(config)
    backend.create_runner(config, backend.describe(config)).close()
