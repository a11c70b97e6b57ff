"""The decoder in PyTorch, driven by a `ModelSpec`: one file for every dense family.

Plain functions of tensors, without autograd. The residual stream and the norm that reads it are one
operation, so a layer takes its input normed and hands the next one what to add.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.rope_kv_write.torch_ref import HeadNorms
from ..models.rope import inverse_frequencies
from ..models.spec import LayerSpec, ModelSpec, RopeSpec
from .forward_batch import ForwardBatch
from .loader import Weights
from .operations import Operations
from .ranks import Ranks

Layer = Mapping[str, Tensor]  # one layer's weights by name


class Decoder:
    """Token ids to hidden states to logits. T is the flat token axis of a ragged batch."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, context_length: int, operations: Operations, ranks: Ranks
    ) -> None:
        """`spec` is the whole model's; `weights` are what this rank has of it."""
        self._ranks, self._vocab_size = ranks, spec.vocab_size
        spec = ranks.held(spec)
        self._spec = spec
        self._weights = weights
        self._operations = operations
        embed = weights.outer["embed"]
        self._output = ranks.own_rows(embed) if spec.tie_embeddings else weights.outer["lm_head"]
        self._embedding_scale = torch.tensor(spec.embedding_scale, dtype=embed.dtype).item()
        self._rope = {
            rope: _rope_table(rope, spec.head_dim, context_length, embed.device)
            for rope in dict.fromkeys(layer.rope for layer in spec.layers)
        }

    def hidden(self, tokens: Tensor, batch: ForwardBatch, kv_pages: Tensor) -> Tensor:
        """Hidden states [T, embed] of tokens [T]; their keys and values are written to `kv_pages`
        [layers * pages, kv_heads, page_size, 2 * head_dim]."""
        spec, operations, outer = self._spec, self._operations, self._weights.outer
        residual = F.embedding(tokens, outer["embed"])
        if self._embedding_scale != 1:
            residual *= self._embedding_scale
        layers = self._weights.layers
        pages_a_layer = kv_pages.shape[0] // spec.num_layers
        x = operations.rms_norm(residual, layers[0]["attn_norm"], spec.norm_eps, spec.norm_offset)
        for index, (layer, weights) in enumerate(zip(spec.layers, layers, strict=True)):
            x = self._attention(layer, weights, x, batch, kv_pages, index * pages_a_layer)
            x, residual = self._add(weights, "attn", x, residual, weights["mlp_norm"])
            x = self._mlp(weights, x)
            last = index + 1 == spec.num_layers
            following = outer["final_norm"] if last else layers[index + 1]["attn_norm"]
            x, residual = self._add(weights, "mlp", x, residual, following)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocab] of hidden states [n, embed], in their dtype."""
        logits = self._ranks.join_logits(F.linear(hidden, self._output), self._vocab_size)
        cap = self._spec.logits_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _add(
        self, weights: Layer, sublayer: str, y: Tensor, residual: Tensor, following: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add a sublayer's output y; returns the sum as the norm `following` leaves it, and the sum."""
        spec = self._spec
        if spec.norm_placement == "sandwich":
            y = self._operations.rms_norm(
                y, weights[f"post_{sublayer}_norm"], spec.norm_eps, spec.norm_offset
            )
        return self._operations.add_rms_norm(y, residual, following, spec.norm_eps, spec.norm_offset)

    def _attention(
        self, layer: LayerSpec, weights: Layer, x: Tensor, batch: ForwardBatch, kv_pages: Tensor,
        first_page: int,
    ) -> Tensor:  # fmt: skip
        spec, operations = self._spec, self._operations
        heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        qkv = F.linear(x, weights["qkv"], weights.get("qkv_bias"))
        q, k, v = qkv.unflatten(1, (-1, spec.head_dim)).split(heads, dim=1)
        norms = None
        if spec.qk_norm:
            norms = HeadNorms(weights["q_norm"], weights["k_norm"], spec.norm_eps, spec.norm_offset)
        q = operations.rope_and_write(
            q, k, v, self._rope[layer.rope], batch.positions, kv_pages, batch.rows.kv_slots,
            first_page=first_page, norms=norms,
        )  # fmt: skip
        attended = operations.ragged_paged_attention(
            q, kv_pages, batch.rows, first_page=first_page, scale=spec.attention_scale,
            window=layer.window, soft_cap=spec.attention_soft_cap,
        )  # fmt: skip
        return self._ranks.sum(F.linear(attended.flatten(1), weights["o"], weights.get("o_bias")))

    def _mlp(self, weights: Layer, x: Tensor) -> Tensor:
        gate_up = F.linear(x, weights["gate_up"], weights.get("gate_up_bias"))
        y = self._operations.gated_activation(gate_up, self._spec.activation)
        return self._ranks.sum(F.linear(y, weights["down"], weights.get("down_bias")))


def _rope_table(rope: RopeSpec, head_dim: int, context: int, device: torch.device) -> Tensor:
    """[context, head_dim] float32: of each position the cosines, then the sines."""
    frequencies = torch.from_numpy(inverse_frequencies(rope, head_dim)).to(device)
    angles = torch.arange(context, device=device, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * rope.attention_factor
