"""The decoder in PyTorch, driven by a `ModelSpec`: one file for every dense family.

Plain functions of tensors, without autograd. What goes from sublayer to sublayer is the residual stream; the
norm that reads it and the addition to it belong to the products at either end of a sublayer.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.linear.torch_ref import Norm
from ...kernels.rope_kv_write.torch_ref import HeadNorms
from ..models.rope import inverse_frequencies
from ..models.spec import ModelSpec, RopeSpec
from .forward_batch import ForwardBatch
from .loader import Weights
from .operations import Operations
from .rank_sums import RankSums
from .ranks import Ranks

Layer = Mapping[str, Tensor]  # one layer's weights by name


class Decoder:
    """Token ids to hidden states to logits. T is the flat token axis of a ragged batch."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, context_length: int, operations: Operations, ranks: Ranks,
        sums: RankSums | None = None,
    ) -> None:  # fmt: skip
        """`spec` is the whole model's; `weights` are what this rank has of it. Without `sums` the process
        group adds up what the ranks' products yield."""
        self._ranks, self._vocab_size = ranks, spec.vocab_size
        self._sums = sums or RankSums(ranks)
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

    def embed(self, batch: ForwardBatch, slots: Tensor, page_tokens: Tensor) -> Tensor:
        """The residual stream [T, embed] before the first layer. Ids that earlier steps sampled come from
        `slots`; all are written to `page_tokens` [pages * page_size]."""
        return self._operations.embed(
            batch.token_ids, slots, self._weights.outer["embed"], page_tokens, batch.rows.kv_slots,
            scale=self._embedding_scale,
        )  # fmt: skip

    def hidden(self, residual: Tensor, batch: ForwardBatch, kv_pages: Tensor) -> Tensor:
        """Hidden states [T, embed] of what `embed` gave; keys and values are written to `kv_pages`
        [layers * pages, kv_heads, page_size, 2 * head_dim]. The residual is overwritten."""
        for layer in range(self.num_layers):
            q = self.queries(layer, residual, batch, kv_pages)
            residual = self.add(layer, self.attend(layer, q, batch, kv_pages), residual)
        return self.final(residual)

    @property
    def num_layers(self) -> int:
        return self._spec.num_layers

    @property
    def layer_elements(self) -> int:
        """Of a layer's matrices, as much of them as this rank has."""
        return sum(each.numel() for each in self._weights.layers[0].values() if each.dim() == 2)

    def queries(self, layer: int, residual: Tensor, batch: ForwardBatch, kv_pages: Tensor) -> Tensor:
        """Queries [T, heads, head_dim] of a layer, its keys and values being written to their pages. Of the
        batch only what each token has is read: positions and `kv_slots`."""
        spec, operations, weights = self._spec, self._operations, self._weights.layers[layer]
        heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        qkv = operations.linear(
            residual, weights["qkv"], weights.get("qkv_bias"), norm=self._norm(weights["attn_norm"])
        )
        q, k, v = qkv.unflatten(1, (-1, spec.head_dim)).split(heads, dim=1)
        norms = None
        if spec.qk_norm:
            norms = HeadNorms(weights["q_norm"], weights["k_norm"], spec.norm_eps, spec.norm_offset)
        rotated: Tensor = operations.rope_and_write(
            q, k, v, self._rope[spec.layers[layer].rope], batch.positions, kv_pages, batch.rows.kv_slots,
            first_page=self._first_page(layer, kv_pages), norms=norms,
        )  # fmt: skip
        return rotated

    def attend(self, layer: int, q: Tensor, batch: ForwardBatch, kv_pages: Tensor) -> Tensor:
        """What a layer's heads attend to [T, heads * head_dim], before the matrix that joins them."""
        spec = self._spec
        attended = self._operations.ragged_paged_attention(
            q, kv_pages, batch.rows, first_page=self._first_page(layer, kv_pages), scale=spec.attention_scale,
            window=spec.layers[layer].window, soft_cap=spec.attention_soft_cap,
        )  # fmt: skip
        return attended.flatten(1)

    def add(self, layer: int, attended: Tensor, residual: Tensor) -> Tensor:
        """The residual after a layer; the one before may be overwritten."""
        weights = self._weights.layers[layer]
        residual = self._add(weights, "attn", "o", attended, residual)
        x = self._operations.linear(
            residual, weights["gate_up"], weights.get("gate_up_bias"),
            norm=self._norm(weights["mlp_norm"]), gate=self._spec.activation,
        )  # fmt: skip
        return self._add(weights, "mlp", "down", x, residual)

    def final(self, residual: Tensor) -> Tensor:
        """Hidden states [T, embed] of the residual after the last layer."""
        normed: Tensor = self._operations.rms_norm(residual, *self._norm(self._weights.outer["final_norm"]))
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocab] of hidden states [n, embed], in their dtype."""
        logits = self._ranks.join_logits(F.linear(hidden, self._output), self._vocab_size)
        cap = self._spec.logits_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _norm(self, weight: Tensor) -> Norm:
        return Norm(weight, self._spec.norm_eps, self._spec.norm_offset)

    def _add(self, weights: Layer, sublayer: str, last: str, x: Tensor, residual: Tensor) -> Tensor:
        """The residual and, added to it, the product of x [T, ...] with a sublayer's last matrix."""
        operations, matrix, bias = self._operations, weights[last], weights.get(f"{last}_bias")
        if self._spec.norm_placement == "sandwich":
            y = self._sums.add(operations.linear(x, matrix, bias))
            return operations.rms_norm(y, *self._norm(weights[f"post_{sublayer}_norm"]), onto=residual)
        if self._ranks.size == 1:
            return operations.linear(x, matrix, bias, onto=residual)
        return self._sums.add(operations.linear(x, matrix, bias), residual)

    def _first_page(self, layer: int, kv_pages: Tensor) -> int:
        return layer * (kv_pages.shape[0] // self._spec.num_layers)


def _rope_table(rope: RopeSpec, head_dim: int, context: int, device: torch.device) -> Tensor:
    """[context, head_dim] float32: of each position the cosines, then the sines."""
    frequencies = torch.from_numpy(inverse_frequencies(rope, head_dim)).to(device)
    angles = torch.arange(context, device=device, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * rope.attention_factor
