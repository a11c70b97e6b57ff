"""Llama 1 to 3, SmolLM2, and Mistral, which differs by its sliding window alone."""

from ..gguf_file import GgufFields, gguf_dimensions, gguf_rope
from ..hf_config import HfConfig, hf_dimensions, hf_rope, hf_windows
from ..params import ParamSpec
from ..spec import LayerSpec, ModelSpec
from .common import Family, Layout, decoder_params


def spec_from_hf(config: HfConfig) -> ModelSpec:
    """`attention_bias` means all four projections here."""
    sizes = hf_dimensions(config, tied=False)
    rope = hf_rope(config)
    bias = config.get("attention_bias", False)
    return ModelSpec(
        family="llama",
        layers=tuple(LayerSpec(window, rope) for window in hf_windows(config)),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.get("mlp_bias", False),
        **sizes,
    )


def spec_from_gguf(fields: GgufFields) -> ModelSpec:
    """Biases are there or not; the metadata does not say."""
    sizes = gguf_dimensions(fields)
    layer = LayerSpec(fields.get("attention.sliding_window"), gguf_rope(fields, sizes["head_dim"]))
    return ModelSpec(
        family="llama",
        layers=(layer,) * fields.need("block_count"),
        qkv_bias=fields.has("blk.0.attn_q.bias"),
        output_bias=fields.has("blk.0.attn_output.bias"),
        mlp_bias=fields.has("blk.0.ffn_down.bias"),
        **sizes,
    )


def params(spec: ModelSpec) -> tuple[ParamSpec, ...]:
    return decoder_params(spec, Layout(gguf_pairs=True))


LLAMA = Family(
    "llama", ("LlamaForCausalLM", "MistralForCausalLM"), ("llama",), spec_from_hf, spec_from_gguf, params
)
