"""The decoder as a Flax NNX module, driven by a `ModelSpec`: one file for every dense family.

Parameters are `nnx.Param`s that carry their logical axis names; those of the layers are stacked, so
that one scanned body serves all layers and compile time does not grow with depth. The runner splits
the module once into definition and state; experiments from Python may use it as it is.

On a mesh the same code runs inside `jax.shard_map`, on each device with its own heads, MLP features and
part of the vocabulary: one sum over the tensor axis makes the embedding whole, two make each layer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...kernels.paged_attention.rows import RaggedRows
from ...kernels.paged_attention.xla import NO_WINDOW
from ...sharding.axis import ALONE, MeshAxis
from ..models.rope import inverse_frequencies
from ..models.spec import ModelSpec
from .layers import rms_norm, rope_tables, rotate, soft_cap
from .params import MeshParam
from .partition import VocabShards

# (q, k, v, kv_pages, rows, *, first_page, scale, window, soft_cap) -> (attended, kv_pages)
Attention = Callable[..., tuple[jax.Array, jax.Array]]
Layer = Mapping[str, jax.Array]  # one layer's parameters by name

_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


class Decoder(nnx.Module):
    """Token ids to hidden states to logits. T is the flat token axis of a ragged batch."""

    def __init__(
        self, spec: ModelSpec, params: tuple[MeshParam, ...], arrays: Mapping[str, Any],
        tensor: MeshAxis = ALONE,
    ) -> None:  # fmt: skip
        """`arrays` holds each parameter of the table by name, stacked ones [layers, ...]; they may be
        jax arrays or `jax.ShapeDtypeStruct`s. `tensor` is the mesh axis over which they are split."""
        self.spec, self.tensor = spec, tensor
        outer = {p.name: nnx.Param(arrays[p.name], logical_axes=p.axes) for p in params if not p.stacked}
        layers = {
            p.name: nnx.Param(arrays[p.name], logical_axes=("layers", *p.axes)) for p in params if p.stacked
        }
        self.outer = nnx.data(outer)
        self.layers = nnx.data(layers)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        rows: RaggedRows,
        kv_pages: jax.Array,
        attend: Attention,
    ) -> tuple[jax.Array, jax.Array]:
        """Hidden states [T, embed] of tokens [T] at positions [T], and the updated KV pool.

        kv_pages: [layers * pages, kv_heads, page_size, 2 * head_dim], donated by the caller.
        """
        spec = self.spec
        x = self.embed(tokens)
        pages_a_layer = kv_pages.shape[0] // spec.num_layers
        tables = _rope_by_kind(spec, positions)

        def layer_step(carry: tuple[jax.Array, jax.Array], layer: tuple[Any, ...]) -> tuple[Any, None]:
            x, kv_pages = carry
            weights, kind, window, index = layer
            cos, sin = (jax.lax.dynamic_index_in_dim(each, kind, keepdims=False) for each in tables)

            def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
                return attend(
                    q, k, v, kv_pages, rows, first_page=index * pages_a_layer,
                    scale=spec.attention_scale, window=window, soft_cap=spec.attention_soft_cap,
                )  # fmt: skip

            x, kv_pages = _layer(spec, self.tensor, weights, x, cos, sin, attention)
            return (x, kv_pages), None

        stacked = {name: param[...] for name, param in self.layers.items()}
        kinds, windows = _layer_kinds(spec)
        (x, kv_pages), _ = jax.lax.scan(
            layer_step, (x, kv_pages), (stacked, kinds, windows, jnp.arange(spec.num_layers, dtype=jnp.int32))
        )
        return rms_norm(x, self.outer["final_norm"][...], spec.norm_eps, spec.norm_offset), kv_pages

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeddings [T, embed] of tokens [T]."""
        table = self.outer["embed"][...]
        if self.tensor.size == 1:
            x = table[tokens]
        else:
            at = VocabShards(self.tensor, table.shape[0]).local(tokens)
            x = self.tensor.sum(table.at[at].get(mode="fill", fill_value=0))
        return x * jnp.asarray(self.spec.embedding_scale, table.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits [n, vocab] float32 of hidden states [n, embed]; on a mesh those of this shard's ids,
        -inf for ids that only fill the last shard."""
        table = self.outer["embed" if self.spec.tie_embeddings else "lm_head"][...]
        logits = jnp.einsum("te,ve->tv", hidden, table, preferred_element_type=jnp.float32)
        logits = soft_cap(logits, self.spec.logits_soft_cap)
        if table.shape[0] * self.tensor.size == self.spec.vocab_size:
            return logits
        return jnp.where(
            VocabShards(self.tensor, table.shape[0]).ids < self.spec.vocab_size, logits, -jnp.inf
        )


def _layer_kinds(spec: ModelSpec) -> tuple[jax.Array, jax.Array]:
    """For each layer the index of its rope among the distinct ones, and its window."""
    ropes = list(dict.fromkeys(layer.rope for layer in spec.layers))
    kinds = np.asarray([ropes.index(layer.rope) for layer in spec.layers], np.int32)
    windows = np.asarray([layer.window or NO_WINDOW for layer in spec.layers], np.int32)
    return jnp.asarray(kinds), jnp.asarray(windows)


def _rope_by_kind(spec: ModelSpec, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin [kinds, T, 1, head_dim / 2]: computed once a step, not once a layer."""
    ropes = dict.fromkeys(layer.rope for layer in spec.layers)
    tables = []
    for rope in ropes:
        cos, sin = rope_tables(positions, jnp.asarray(inverse_frequencies(rope, spec.head_dim)))
        tables.append((cos * rope.attention_factor, sin * rope.attention_factor))
    return jnp.stack([cos for cos, _ in tables]), jnp.stack([sin for _, sin in tables])


def _layer(
    spec: ModelSpec, tensor: MeshAxis, weights: Layer, x: jax.Array, cos: jax.Array, sin: jax.Array,
    attention: Attention,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """One transformer layer on x [T, embed]; returns it and what `attention` made of the KV pool."""

    def norm(x: jax.Array, name: str) -> jax.Array:
        return rms_norm(x, weights[name], spec.norm_eps, spec.norm_offset)

    sandwich = spec.norm_placement == "sandwich"
    y, kv_pages = _attention_block(spec, tensor, weights, norm(x, "attn_norm"), cos, sin, attention)
    x = x + (norm(y, "post_attn_norm") if sandwich else y)
    y = _mlp_block(spec, tensor, weights, norm(x, "mlp_norm"))
    return x + (norm(y, "post_mlp_norm") if sandwich else y), kv_pages


def _attention_block(
    spec: ModelSpec, tensor: MeshAxis, weights: Layer, x: jax.Array, cos: jax.Array, sin: jax.Array,
    attention: Attention,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    qkv = x @ weights["qkv"]
    if spec.qkv_bias:
        qkv += weights["qkv_bias"]
    # cut before the heads get an axis: with it TPUs want the matrix in another order, and copy it
    columns, kv_columns = qkv.shape[1], max(spec.num_kv_heads // tensor.size, 1) * spec.head_dim
    parts = jnp.split(qkv, (columns - 2 * kv_columns, columns - kv_columns), axis=1)
    q, k, v = (part.reshape(len(x), -1, spec.head_dim) for part in parts)
    if spec.qk_norm:
        q = rms_norm(q, weights["q_norm"], spec.norm_eps, spec.norm_offset)
        k = rms_norm(k, weights["k_norm"], spec.norm_eps, spec.norm_offset)
    attended, kv_pages = attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
    y = tensor.sum(jnp.einsum("thd,hde->te", attended, weights["o"]))
    return (y + weights["o_bias"] if spec.output_bias else y), kv_pages


def _mlp_block(spec: ModelSpec, tensor: MeshAxis, weights: Layer, x: jax.Array) -> jax.Array:
    gate_up = x @ weights["gate_up"]
    if spec.mlp_bias:
        gate_up += weights["gate_up_bias"]
    gate, up = jnp.split(gate_up, 2, axis=-1)
    y = tensor.sum((_ACTIVATIONS[spec.activation](gate) * up) @ weights["down"])
    return y + weights["down_bias"] if spec.mlp_bias else y
