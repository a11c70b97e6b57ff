"""GGUF files written as llama.cpp's converter writes them, against the models they came from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radixmesh.backends.models.checkpoint import open_checkpoint
from radixmesh.backends.models.describe import describe, read_spec
from radixmesh.backends.models.embedded import fetch_embedded
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.source import ModelSource
from radixmesh.backends.models.spec import RopeSpec
from radixmesh.backends.models.weights import unclaimed_tensors
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ModelError
from tests.oracle import load_gguf_oracle, oracle_logits
from tests.reference_decoder import read_params, reference_logits
from tests.tiny_gguf import ARCHITECTURES, llama3_factors, write_gguf
from tests.tiny_models import save_tiny_model

TOKENS = np.random.default_rng(1).integers(3, 160, 30).tolist()


def logits_of(source: ModelSource) -> np.ndarray:
    spec, checkpoint = read_spec(source), open_checkpoint(source)
    assert unclaimed_tensors(spec, param_table(spec), checkpoint) == set()
    return reference_logits(spec, read_params(spec, checkpoint), TOKENS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_files_give_the_logits_of_their_model(name: str, tmp_path: Path) -> None:
    model = save_tiny_model(name, tmp_path)
    if name == "gemma3":  # the format has no place for query_pre_attn_scalar: scores scale by head_dim
        for layer in model.model.layers:
            layer.self_attn.scaling = model.config.head_dim**-0.5
    source = write_gguf(tmp_path / "tiny.gguf", model, ARCHITECTURES[name])
    np.testing.assert_allclose(logits_of(source), oracle_logits(model, TOKENS), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_files_equal_transformers(kind: str, tmp_path: Path) -> None:
    model = save_tiny_model("llama", tmp_path, intermediate_size=64)
    source = write_gguf(tmp_path / "tiny.gguf", model, "llama", kind)
    oracle = load_gguf_oracle(tmp_path / "tiny.gguf")
    np.testing.assert_allclose(logits_of(source), oracle_logits(oracle, TOKENS), rtol=2e-4, atol=2e-4)
    assert read_spec(source).dtype == ("float16" if kind == "F16" else "bfloat16")


def test_frequency_factors_become_llama3_rope(tmp_path: Path) -> None:
    model = save_tiny_model("llama-llama3", tmp_path)
    model.config.rope_parameters = dict(rope_type="default", rope_theta=500000.0)
    factors = llama3_factors()
    assert len(set(factors.tolist())) > 2
    source = write_gguf(tmp_path / "a.gguf", model, "llama", tensors={"rope_freqs.weight": factors})
    assert read_spec(source).layers[0].rope == RopeSpec(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    ones = np.ones(8, np.float32)
    source = write_gguf(tmp_path / "b.gguf", model, "llama", tensors={"rope_freqs.weight": ones})
    assert read_spec(source).layers[0].rope == RopeSpec(500000.0)
    odd = np.linspace(1, 3, 8, dtype=np.float32)
    source = write_gguf(tmp_path / "c.gguf", model, "llama", tensors={"rope_freqs.weight": odd})
    with pytest.raises(ModelError, match="rope_freqs.weight holds frequency factors of an unknown kind"):
        read_spec(source)


def test_gemma_metadata_beyond_the_defaults(tmp_path: Path) -> None:
    model = save_tiny_model("gemma3", tmp_path)
    extra = {"gemma3.attention.sliding_window_pattern": 3, "gemma3.rope.freq_base_swa": 5000.0}
    spec = read_spec(write_gguf(tmp_path / "a.gguf", model, "gemma3", metadata=extra))
    assert [layer.window for layer in spec.layers] == [6, 6, None, 6, 6, None, 6]
    assert {layer.rope.base for layer in spec.layers if layer.window} == {5000.0}
    pattern = [True, False, True, True, False, True, False]
    by_layer = {"gemma3.attention.sliding_window_pattern": pattern}
    spec = read_spec(write_gguf(tmp_path / "b.gguf", model, "gemma3", metadata=by_layer))
    assert [layer.window is not None for layer in spec.layers] == pattern
    assert {layer.rope.base for layer in spec.layers if layer.window} == {10000.0}


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"llama.expert_count": 8}, "expert_count is 8"),
        ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type is 'longrope'"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count is 4; accepted is the whole head, 8"),
        ({"split.count": 3}, "one of 3 parts"),
    ],
)
def test_what_cannot_be_served_is_refused(metadata: dict[str, Any], named: str, tmp_path: Path) -> None:
    model = save_tiny_model("llama", tmp_path)
    with pytest.raises(ModelError, match=named):
        read_spec(write_gguf(tmp_path / "tiny.gguf", model, "llama", metadata=metadata))


def test_unknown_architecture_and_broken_files_are_refused(tmp_path: Path) -> None:
    model = save_tiny_model("llama", tmp_path)
    path = tmp_path / "tiny.gguf"
    with pytest.raises(ModelError, match="'mamba'.*accepted are llama, qwen2, qwen3, gemma3"):
        read_spec(write_gguf(path, model, "mamba"))
    source = write_gguf(path, model, "llama")
    whole = path.read_bytes()
    for broken in (b"", b"GGUF", whole[:100], whole[:3000], b"GGML" + whole[4:], whole[:4] + whole[5:]):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match="not a complete GGUF file"):
            read_spec(source)
    path.write_bytes(whole[:-500])
    with pytest.raises(ModelError, match="beyond the end"):
        logits_of(source)


def test_description(tmp_path: Path) -> None:
    model = save_tiny_model("llama", tmp_path)
    extra = {"tokenizer.ggml.eot_token_id": 9, "general.sampling.temp": 0.5, "general.sampling.top_k": 0}
    source = write_gguf(tmp_path / "tiny.gguf", model, "llama", metadata=extra)
    info = describe(EngineConfig(model_path=source.path), source)
    assert (info.vocab_size, info.context_length) == (160, 256)
    assert info.eos_token_ids == {2, 9}
    assert info.default_sampling == {"temperature": 0.5, "top_k": -1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m"])
def test_embedded_models_equal_transformers(name: str) -> None:
    """Every weight of the real files, K-quants among them, and the logits of a short text."""
    path = fetch_embedded(name)
    oracle = load_gguf_oracle(path)
    logits = logits_of(ModelSource(str(path), "gguf", name))
    wanted = oracle_logits(oracle, TOKENS)
    assert np.abs(wanted).max() > 5
    np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=2e-3)
