"""Tiny random models of every family, made and saved by transformers: the oracle's side of tests."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.oracle import load_oracle

_SIZES: dict[str, Any] = dict(
    vocab_size=160,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip
_YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)

CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "llama-biased": lambda: LlamaConfig(
        **_SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama-linear": lambda: LlamaConfig(
        **_SIZES, rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=4.0)
    ),
    "llama-llama3": lambda: LlamaConfig(**_SIZES, head_dim=16, rope_parameters=_LLAMA3),
    "llama-yarn": lambda: LlamaConfig(**_SIZES, head_dim=16, rope_parameters=_YARN),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=7),
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "qwen2-window": lambda: Qwen2Config(
        **_SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=16),
    "gemma3": lambda: Gemma3TextConfig(
        **_SIZES | dict(num_hidden_layers=7), head_dim=16, sliding_window=6, query_pre_attn_scalar=24,
        rope_parameters={
            "sliding_attention": dict(rope_type="default", rope_theta=10000.0),
            "full_attention": dict(rope_type="linear", rope_theta=1e6, factor=8.0),
        },
    ),
}  # fmt: skip


def save_tiny_model(
    name: str, folder: Path, dtype: str = "float32", max_shard_size: str = "5GB", **changes: int
) -> Any:
    """Draw a model of `CONFIGS`, save it as safetensors, and return it in float32 as transformers runs it.

    Every parameter is random, norms and biases too, so that nothing passes for being 0 or 1.
    """
    torch.manual_seed(sum(map(ord, name)))
    config = CONFIGS[name]()
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if key.endswith("norm.weight") else 0.15)
            if key.endswith("norm.weight") and not name.startswith("gemma"):
                parameter.add_(1.0)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    return load_oracle(folder)
