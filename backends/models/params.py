"""The parameter table: every weight of a decoder, its checkpoint names, shape and logical axes.

Our names and layouts, for a `ModelSpec` m (stacked ones have a leading layer axis in the decoder):

    embed           [vocab, embed]                  lm_head     [vocab, embed] unless tied
    final_norm      [embed]
    attn_norm       [embed]                         mlp_norm    [embed]
    post_attn_norm  [embed]  (sandwich)             post_mlp_norm [embed]  (sandwich)
    q               [embed, heads, head_dim]        q_bias      [heads, head_dim]
    k, v            [embed, kv_heads, head_dim]     k_bias, v_bias [kv_heads, head_dim]
    o               [heads, head_dim, embed]        o_bias      [embed]
    q_norm, k_norm  [head_dim]
    gate, up        [embed, mlp]                    gate_bias, up_bias [mlp]
    down            [mlp, embed]                    down_bias   [embed]

Names and layouts of checkpoint tensors are the family's business: `hf` and `gguf` name the tensor
("{layer}" stands for the layer's number), `from_hf` and `from_gguf` turn the stored array into ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ParamSpec:
    """One parameter. `shape` and `axes` are those of a single layer when `stacked`."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical axes: vocab, embed, heads, kv_heads, head_dim, mlp
    stacked: bool
    hf: str
    gguf: str
    from_hf: Transform
    from_gguf: Transform
