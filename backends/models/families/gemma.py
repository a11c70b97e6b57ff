"""Gemma 3 text: a norm before and after each sublayer, q/k norm, sliding windows in five layers of six
with a rope base of their own, and scaled embeddings."""

from dataclasses import replace
from typing import Any

import numpy as np

from ....engine.errors import ModelError
from ..gguf_file import GgufFields, gguf_dimensions, gguf_rope
from ..hf_config import HfConfig, hf_dimensions, hf_rope, hf_windows
from ..params import ParamSpec
from ..spec import LayerSpec, ModelSpec, RopeSpec
from .common import Family, Layout, decoder_params

_PATTERN = 6  # every sixth layer sees the whole context
_LOCAL_BASE = 10000.0
_LAYERS_OF_27B = 62  # the one size whose scores are not scaled by its head_dim


def _spec(layers: tuple[LayerSpec, ...], sizes: dict[str, Any], **rest: Any) -> ModelSpec:
    sizes |= {"activation": "gelu_tanh"} | rest
    return ModelSpec(
        family="gemma3",
        layers=layers,
        norm_placement="sandwich",
        norm_offset=1.0,
        qk_norm=True,
        embedding_scale=float(sizes["hidden_size"] ** 0.5),
        **sizes,
    )


def spec_from_hf(config: HfConfig) -> ModelSpec:
    if config.get("use_bidirectional_attention"):
        raise ModelError("use_bidirectional_attention is true in config.json; accepted is causal attention")
    sizes = hf_dimensions(config, tied=True, head_dim=256)
    windows = hf_windows(config, pattern=config.get("sliding_window_pattern", _PATTERN), window=4096)
    local = hf_rope(config, "sliding_attention", base=config.get("rope_local_base_freq", _LOCAL_BASE))
    full = hf_rope(config, "full_attention", base=1e6)
    bias = config.get("attention_bias", False)
    if sizes["activation"] != "gelu_tanh":
        raise ModelError(f"hidden_activation is not gelu_pytorch_tanh in {config.path}, as Gemma 3 has it")
    return _spec(
        tuple(LayerSpec(window, local if window else full) for window in windows),
        sizes,
        attention_scale=float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
        attention_soft_cap=config.get("attn_logit_softcapping"),
        logits_soft_cap=config.get("final_logit_softcapping"),
        qkv_bias=bias,
        output_bias=bias,
    )


def spec_from_gguf(fields: GgufFields) -> ModelSpec:
    sizes = gguf_dimensions(fields)
    number = fields.need("block_count")
    if number == _LAYERS_OF_27B:
        scale = (sizes["hidden_size"] / sizes["num_heads"]) ** -0.5
        sizes["attention_scale"] = float(fields.get("attention.scale", scale))
    full = gguf_rope(fields, sizes["head_dim"])
    if fields.get("rope.freq_base") is None:
        full = replace(full, base=1e6)
    local = RopeSpec(float(fields.get("rope.freq_base_swa", _LOCAL_BASE)))
    window = int(fields.need("attention.sliding_window"))
    pattern = np.atleast_1d(fields.get("attention.sliding_window_pattern", _PATTERN))
    if pattern.size == 1:
        sliding = [(index + 1) % int(pattern[0]) != 0 for index in range(number)]
    else:
        sliding = pattern.astype(bool).tolist()
    layers = tuple(LayerSpec(window, local) if each else LayerSpec(None, full) for each in sliding)
    return _spec(layers, sizes, logits_soft_cap=fields.get("final_logit_softcapping"))


def params(spec: ModelSpec) -> tuple[ParamSpec, ...]:
    """The GGUF converter adds 1 to every norm weight. Taking it off again keeps one `ModelSpec` for both
    formats, and the precision of small weights when they are cast to bfloat16."""
    return decoder_params(spec, Layout(gguf_norm_offset=1.0))


GEMMA3 = Family(
    "gemma3",
    ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    ("gemma3",),
    spec_from_hf,
    spec_from_gguf,
    params,
)
