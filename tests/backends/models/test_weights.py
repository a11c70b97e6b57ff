"""Checkpoints that do not fit their model, and random weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from radixmesh.backends.models.checkpoint import SafetensorsCheckpoint
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.spec import LayerSpec, ModelSpec
from radixmesh.backends.models.weights import dummy_params, iterate_params, unclaimed_tensors
from radixmesh.engine.errors import ModelError

SPEC = ModelSpec(
    family="qwen3", vocab_size=11, hidden_size=8, intermediate_size=12, num_heads=2, num_kv_heads=1,
    head_dim=6, layers=(LayerSpec(),) * 2, context_length=64, norm_eps=1e-6, attention_scale=1.0,
    qk_norm=True,
)  # fmt: skip


def tensors() -> dict[str, np.ndarray]:
    """A whole checkpoint of SPEC, every value different."""
    shapes = {"model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,)}
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (8,), "post_attention_layernorm": (8,),
                "self_attn.q_proj": (12, 8), "self_attn.k_proj": (6, 8), "self_attn.v_proj": (6, 8),
                "self_attn.o_proj": (8, 12), "self_attn.q_norm": (6,), "self_attn.k_norm": (6,),
                "mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12),
            }.items()
        }  # fmt: skip
    count, made = 0, {}
    for name, shape in shapes.items():
        made[name] = np.arange(count, count + np.prod(shape), dtype=np.float32).reshape(shape)
        count += int(np.prod(shape))
    return made


def opened(stored: dict[str, np.ndarray], folder: Path) -> SafetensorsCheckpoint:
    save_file(stored, folder / "model.safetensors")
    return SafetensorsCheckpoint(folder)


def test_layouts(tmp_path: Path) -> None:
    """q[e, h, d] is the stored [h * head_dim + d, e], o[h, d, e] the stored [e, h * head_dim + d]."""
    stored = tensors()
    found = {
        (param.name, layer): array
        for param, layer, array in iterate_params(SPEC, param_table(SPEC), opened(stored, tmp_path))
    }
    assert len(found) == len(stored)
    prefix = "model.layers.1"
    assert found["q", 1][3, 1, 2] == stored[f"{prefix}.self_attn.q_proj.weight"][1 * 6 + 2, 3]
    assert found["k", 1][3, 0, 2] == stored[f"{prefix}.self_attn.k_proj.weight"][2, 3]
    assert found["o", 1][1, 2, 3] == stored[f"{prefix}.self_attn.o_proj.weight"][3, 1 * 6 + 2]
    assert found["down", 1][9, 3] == stored[f"{prefix}.mlp.down_proj.weight"][3, 9]
    assert found["embed", None][10, 7] == stored["model.embed_tokens.weight"][10, 7]


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    stored = tensors()
    stored[name] = np.zeros((7, 8), np.float32)
    with pytest.raises(ModelError, match=rf"{name} has shape \(7, 8\).*\(8, 1, 6\)"):
        list(iterate_params(SPEC, param_table(SPEC), opened(stored, tmp_path)))
    del stored[name]
    with pytest.raises(ModelError, match=f"no tensor {name}"):
        list(iterate_params(SPEC, param_table(SPEC), opened(stored, tmp_path)))


def test_unclaimed_tensors(tmp_path: Path) -> None:
    extra = {
        name: np.zeros(2, np.float32)
        for name in ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.2.odd")
    }
    checkpoint = opened(tensors() | extra, tmp_path)
    assert unclaimed_tensors(SPEC, param_table(SPEC), checkpoint) == {"model.layers.2.odd"}


def test_odd_dtypes_and_broken_files_are_refused(tmp_path: Path) -> None:
    stored = tensors() | {"model.norm.weight": np.zeros(8, np.int32)}
    with pytest.raises(ModelError, match="model.norm.weight .* dtype I32; accepted are F32, F16, BF16"):
        list(iterate_params(SPEC, param_table(SPEC), opened(stored, tmp_path)))
    opened(tensors(), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="beyond the end"):
        list(iterate_params(SPEC, param_table(SPEC), SafetensorsCheckpoint(tmp_path)))
    for broken in (b"", whole[:50], b"\xff" * 64):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match="not a complete safetensors file"):
            SafetensorsCheckpoint(tmp_path)
    path.unlink()
    with pytest.raises(ModelError, match=r"no \*.safetensors files"):
        SafetensorsCheckpoint(tmp_path)


def test_dummy_params_have_the_shapes_of_real_ones() -> None:
    made = list(dummy_params(SPEC, param_table(SPEC), seed=3))
    assert all(array.shape == param.shape and array.dtype == np.float32 for param, _, array in made)
    arrays = {(param.name, layer): array for param, layer, array in made}
    assert np.all(arrays["q_norm", 1] == 1) and np.all(arrays["final_norm", None] == 1)
    assert 0.005 < arrays["gate", 0].std() < 0.05
    assert not np.array_equal(arrays["gate", 0], arrays["gate", 1])
    again = {
        (param.name, layer): array for param, layer, array in dummy_params(SPEC, param_table(SPEC), seed=3)
    }
    assert all(np.array_equal(arrays[key], again[key]) for key in arrays)


def test_dummy_norms_count_the_offset() -> None:
    gemma = replace(SPEC, family="gemma3", norm_placement="sandwich", norm_offset=1.0)
    for param, _, array in dummy_params(gemma, param_table(gemma)):
        if param.name.endswith("_norm"):
            assert np.all(array == 0)


def test_a_large_dummy_matrix_has_no_equal_rows() -> None:
    large = replace(SPEC, vocab_size=4096, hidden_size=1024, layers=())
    embed = next(
        array for param, _, array in dummy_params(large, param_table(large)) if param.name == "embed"
    )
    assert len(np.unique(embed[:, :4], axis=0)) == 4096


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelError, match=f"{name}, a pickle, .* accepted are .*safetensors"):
        SafetensorsCheckpoint(tmp_path)
