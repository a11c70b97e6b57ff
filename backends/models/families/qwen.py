"""Qwen2 and Qwen2.5 (biases on q, k and v) and Qwen3 (norms on q and k instead)."""

from ..gguf_file import GgufFields, gguf_dimensions, gguf_rope
from ..hf_config import HfConfig, hf_dimensions, hf_rope, hf_windows
from ..spec import LayerSpec, ModelSpec
from .common import Family, decoder_params


def _layers(config: HfConfig) -> tuple[LayerSpec, ...]:
    rope = hf_rope(config)
    return tuple(LayerSpec(window, rope) for window in hf_windows(config, slides=False))


def qwen2_from_hf(config: HfConfig) -> ModelSpec:
    return ModelSpec(
        family="qwen2", layers=_layers(config), qkv_bias=True, **hf_dimensions(config, tied=False)
    )


def qwen3_from_hf(config: HfConfig) -> ModelSpec:
    bias = config.get("attention_bias", False)
    sizes = hf_dimensions(config, tied=False, head_dim=128)
    return ModelSpec(
        family="qwen3", layers=_layers(config), qk_norm=True, qkv_bias=bias, output_bias=bias, **sizes
    )


def _from_gguf(fields: GgufFields) -> ModelSpec:
    sizes = gguf_dimensions(fields)
    return ModelSpec(
        family=fields.architecture,
        layers=(LayerSpec(None, gguf_rope(fields, sizes["head_dim"])),) * fields.need("block_count"),
        qk_norm=fields.has("blk.0.attn_q_norm.weight"),
        qkv_bias=fields.has("blk.0.attn_q.bias"),
        output_bias=fields.has("blk.0.attn_output.bias"),
        **sizes,
    )


QWEN2 = Family("qwen2", ("Qwen2ForCausalLM",), ("qwen2",), qwen2_from_hf, _from_gguf, decoder_params)
QWEN3 = Family("qwen3", ("Qwen3ForCausalLM",), ("qwen3",), qwen3_from_hf, _from_gguf, decoder_params)
