"""What a `ModelSpec` means, in plain numpy: no cache, no batch, float32, one layer after the other."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from radixmesh.backends.models.checkpoint import Checkpoint
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.rope import inverse_frequencies
from radixmesh.backends.models.spec import LayerSpec, ModelSpec, RopeSpec
from radixmesh.backends.models.weights import iterate_params

F32 = NDArray[np.float32]
Params = dict[str, F32]  # stacked ones as [layers, ...]


def read_params(spec: ModelSpec, checkpoint: Checkpoint) -> Params:
    """Every parameter as float32, layers stacked."""
    found: dict[str, list[F32]] = {}
    table = param_table(spec)
    for param, _, array in iterate_params(spec, table, checkpoint):
        found.setdefault(param.name, []).append(np.asarray(array, np.float32))
    return {p.name: np.stack(found[p.name]) if p.stacked else found[p.name][0] for p in table}


def reference_logits(spec: ModelSpec, params: Params, token_ids: list[int]) -> F32:
    """Logits after each token: float32 [tokens, vocab]."""
    x = params["embed"][token_ids] * np.float32(spec.embedding_scale)
    for index, layer in enumerate(spec.layers):
        own = {name: array[index] for name, array in params.items() if name not in _OUTER}
        x = x + _sublayer(spec, own, "attn", x, partial(_attention, spec, layer, own))
        x = x + _sublayer(spec, own, "mlp", x, partial(_mlp, spec, own))
    x = _norm(spec, params["final_norm"], x)
    return _soft_cap(spec.logits_soft_cap, x @ params.get("lm_head", params["embed"]).T)


_OUTER = ("embed", "final_norm", "lm_head")


def _sublayer(spec: ModelSpec, own: Params, name: str, x: F32, function: Callable[[F32], F32]) -> F32:
    y = function(_norm(spec, own[f"{name}_norm"], x))
    return _norm(spec, own[f"post_{name}_norm"], y) if spec.norm_placement == "sandwich" else y


def _norm(spec: ModelSpec, weight: F32, x: F32) -> F32:
    scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + spec.norm_eps)
    return x * scale * (np.float32(spec.norm_offset) + weight)


def _attention(spec: ModelSpec, layer: LayerSpec, own: Params, x: F32) -> F32:
    q, k, v = (np.einsum("te,ehd->thd", x, own[n]) + own.get(f"{n}_bias", 0) for n in "qkv")
    if spec.qk_norm:
        q, k = _norm(spec, own["q_norm"], q), _norm(spec, own["k_norm"], k)
    q, k = _rotate(layer.rope, q), _rotate(layer.rope, k)
    group = spec.num_heads // spec.num_kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = _soft_cap(spec.attention_soft_cap, np.einsum("qhd,khd->hqk", q, k) * spec.attention_scale)
    distance = np.arange(len(x))[:, None] - np.arange(len(x))[None, :]
    seen = distance >= 0
    if layer.window is not None:
        seen &= distance < layer.window
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", weights, v)
    return np.einsum("qhd,hde->qe", mixed, own["o"]) + own.get("o_bias", 0)


def _rotate(rope: RopeSpec, x: F32) -> F32:
    """x [tokens, heads, head_dim]: the first half of each head turns with the second."""
    angles = np.arange(len(x))[:, None] * inverse_frequencies(rope, x.shape[-1])
    cos, sin = (f(angles)[:, None, :] * rope.attention_factor for f in (np.cos, np.sin))
    first, second = np.split(x, 2, axis=-1)
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(np.float32)


def _mlp(spec: ModelSpec, own: Params, x: F32) -> F32:
    gate, up = (x @ own[n] + own.get(f"{n}_bias", 0) for n in ("gate", "up"))
    if spec.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gate * up) @ own["down"] + own.get("down_bias", 0)


def _soft_cap(cap: float | None, x: F32) -> F32:
    return x if cap is None else cap * np.tanh(x / cap)
