"""GGUF files of tiny models, as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from radixmesh.backends.models.source import ModelSource

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


def llama3_factors() -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1 (factor 8, base 500000) with heads of 16."""
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, 16, 2) / 16)
    low, high = 8192 / 1.0, 8192 / 4.0
    smooth = (8192 / wavelengths - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / 8.0 + smooth)
    return np.where(wavelengths < high, 1, np.where(wavelengths > low, 8.0, between)).astype(np.float32)
