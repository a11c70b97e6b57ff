"""What a decoder *is*, independent of where it runs: dimensions and the kinds of its layers.

Both backends build the same decoder from a `ModelSpec`; a family file (`families/`) fills it in from
`config.json` or GGUF metadata and names the checkpoint's tensors (`params.py`).
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding over the whole head, halves rotated together ("neox" layout).

    `kind` and its parameters follow Hugging Face's `rope_parameters`: "default"; "linear" (`factor`);
    "llama3" (`factor`, `low_freq_factor`, `high_freq_factor`, `original_context`); "yarn" (`factor`,
    `beta_fast`, `beta_slow`, `original_context`, `attention_factor`).
    """

    base: float = 10000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0  # multiplies cos and sin


@dataclass(frozen=True)
class LayerSpec:
    """One layer's attention: `window` None attends to everything before, else to the last `window`
    tokens, the token itself included."""

    window: int | None = None
    rope: RopeSpec = RopeSpec()


@dataclass(frozen=True)
class ModelSpec:
    """A dense decoder-only transformer. Sizes in elements."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    context_length: int
    norm_eps: float
    attention_scale: float  # multiplies q @ k
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm_placement: Literal["pre", "sandwich"] = "pre"  # sandwich: a norm before and after each sublayer
    norm_offset: float = 0.0  # RMSNorm multiplies by (offset + weight); Gemma's checkpoints want 1
    qk_norm: bool = False  # RMSNorm over each head of q and k, before rope
    qkv_bias: bool = False
    output_bias: bool = False  # bias of the attention output projection
    mlp_bias: bool = False
    embedding_scale: float = 1.0
    tie_embeddings: bool = True
    attention_soft_cap: float | None = None  # cap * tanh(scores / cap)
    logits_soft_cap: float | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"  # of the checkpoint

    @property
    def num_layers(self) -> int:
        return len(self.layers)
