"""Every family against transformers: tiny random checkpoints, read and run by a plain numpy decoder."""

import json
from pathlib import Path

import numpy as np
import pytest

from radixmesh.backends.models.checkpoint import open_checkpoint
from radixmesh.backends.models.describe import read_spec
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.source import ModelSource
from radixmesh.backends.models.weights import unclaimed_tensors
from tests.oracle import oracle_logits
from tests.reference_decoder import read_params, reference_logits
from tests.tiny_models import CONFIGS, save_tiny_model

TOKENS = np.random.default_rng(0).integers(3, 160, 40).tolist()


def source_of(folder: Path) -> ModelSource:
    return ModelSource(str(folder), "hf", "tiny")


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    oracle = oracle_logits(save_tiny_model(name, tmp_path), TOKENS)
    spec = read_spec(source_of(tmp_path))
    params = read_params(spec, open_checkpoint(source_of(tmp_path)))
    np.testing.assert_allclose(reference_logits(spec, params, TOKENS), oracle, rtol=2e-4, atol=2e-4)
    assert np.ptp(oracle, axis=0).min() > 0.01  # the case can tell one position from another


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_claimed(name: str, tmp_path: Path) -> None:
    save_tiny_model(name, tmp_path)
    spec, checkpoint = read_spec(source_of(tmp_path)), open_checkpoint(source_of(tmp_path))
    assert unclaimed_tensors(spec, param_table(spec), checkpoint) == set()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_shards_and_bfloat16_read_the_same(name: str, tmp_path: Path) -> None:
    model = save_tiny_model(name, tmp_path, dtype="bfloat16", max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    spec, checkpoint = read_spec(source_of(tmp_path)), open_checkpoint(source_of(tmp_path))
    assert spec.dtype == "bfloat16"
    assert {str(checkpoint.read(name).dtype) for name in checkpoint.names()} == {"bfloat16"}
    params = read_params(spec, checkpoint)
    oracle = oracle_logits(model, TOKENS)
    np.testing.assert_allclose(reference_logits(spec, params, TOKENS), oracle, rtol=2e-4, atol=2e-4)


def test_older_config_files_mean_the_same(tmp_path: Path) -> None:
    """rope_theta and rope_scaling, as written before transformers 5, for two rope bases as well."""
    for name in ("llama-llama3", "gemma3"):
        save_tiny_model(name, tmp_path)
        today = read_spec(source_of(tmp_path))
        config = json.loads((tmp_path / "config.json").read_text())
        rope = config.pop("rope_parameters")
        if name == "gemma3":
            config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
            config["sliding_window_pattern"] = 6
            config.pop("layer_types")
            rope = rope["full_attention"]
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope
        config["torch_dtype"] = config.pop("dtype")
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert read_spec(source_of(tmp_path)) == today


def test_text_part_of_a_multimodal_model(tmp_path: Path) -> None:
    """Gemma3ForConditionalGeneration nests its text config and prefixes its tensors."""
    from safetensors.numpy import load_file, save_file

    oracle = oracle_logits(save_tiny_model("gemma3", tmp_path), TOKENS)
    text = json.loads((tmp_path / "config.json").read_text())
    for key in ("architectures", "dtype", "eos_token_id"):
        text.pop(key)
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text,
        "dtype": "float32", "eos_token_id": [2, 7],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(whole))
    tensors = load_file(tmp_path / "model.safetensors")
    nested = {f"language_model.{name}": array for name, array in tensors.items()}
    nested["vision_tower.encoder.weight"] = np.zeros(3, np.float32)
    save_file(nested, tmp_path / "model.safetensors")
    spec, checkpoint = read_spec(source_of(tmp_path)), open_checkpoint(source_of(tmp_path))
    assert spec.dtype == "float32"
    assert unclaimed_tensors(spec, param_table(spec), checkpoint) == set()
    logits = reference_logits(spec, read_params(spec, checkpoint), TOKENS)
    np.testing.assert_allclose(logits, oracle, rtol=2e-4, atol=2e-4)
