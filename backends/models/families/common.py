"""What the families have in common: the `Family` record, and the table of a decoder's parameters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..gguf_file import GgufFields
from ..hf_config import HfConfig
from ..params import ParamSpec, Transform
from ..spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """How one family of models is recognised, described and read.

    `hf` are names in the `architectures` of config.json, `gguf` values of `general.architecture`.
    """

    name: str
    hf: tuple[str, ...]
    gguf: tuple[str, ...]
    spec_from_hf: Callable[[HfConfig], ModelSpec]
    spec_from_gguf: Callable[[GgufFields], ModelSpec]
    params: Callable[[ModelSpec], tuple[ParamSpec, ...]]


@dataclass(frozen=True)
class Layout:
    """How a family's checkpoints differ from the plainest one.

    `gguf_pairs`: q and k rows are stored as neighbouring pairs, ggml's rope order for Llama.
    `gguf_norm_offset`: what the GGUF converter added to every norm weight.
    """

    gguf_pairs: bool = False
    gguf_norm_offset: float = 0.0


def decoder_params(spec: ModelSpec, layout: Layout | None = None) -> tuple[ParamSpec, ...]:
    """Every parameter of the decoder that `spec` describes, in the order in which it is used."""
    layout = layout or Layout()
    return (*_outer(spec, layout), *_norms(spec, layout), *_attention(spec, layout), *_mlp(spec))


def _outer(spec: ModelSpec, layout: Layout) -> Iterator[ParamSpec]:
    table = (spec.vocab_size, spec.hidden_size)
    yield ParamSpec(
        "embed", table, ("vocab", "embed"), False,
        "model.embed_tokens.weight", "token_embd.weight", _same, _same,
    )  # fmt: skip
    yield _norm("final_norm", spec.hidden_size, "model.norm", "output_norm", layout, stacked=False)
    if not spec.tie_embeddings:
        yield ParamSpec(
            "lm_head", table, ("vocab", "embed"), False, "lm_head.weight", "output.weight", _same, _same
        )


def _norms(spec: ModelSpec, layout: Layout) -> Iterator[ParamSpec]:
    size = spec.hidden_size
    if spec.norm_placement == "pre":
        names = [
            ("attn_norm", "input_layernorm", "attn_norm"),
            ("mlp_norm", "post_attention_layernorm", "ffn_norm"),
        ]
    else:
        names = [
            ("attn_norm", "input_layernorm", "attn_norm"),
            ("post_attn_norm", "post_attention_layernorm", "post_attention_norm"),
            ("mlp_norm", "pre_feedforward_layernorm", "ffn_norm"),
            ("post_mlp_norm", "post_feedforward_layernorm", "post_ffw_norm"),
        ]
    for name, hf, gguf in names:
        yield _norm(name, size, f"model.layers.{{layer}}.{hf}", f"blk.{{layer}}.{gguf}", layout)
    if spec.qk_norm:
        for each in "qk":
            hf, gguf = f"model.layers.{{layer}}.self_attn.{each}_norm", f"blk.{{layer}}.attn_{each}_norm"
            yield _norm(f"{each}_norm", spec.head_dim, hf, gguf, layout, axis="head_dim")


def _norm(
    name: str, size: int, hf: str, gguf: str, layout: Layout, stacked: bool = True, axis: str = "embed"
) -> ParamSpec:
    from_gguf = partial(_subtract, layout.gguf_norm_offset) if layout.gguf_norm_offset else _same
    return ParamSpec(name, (size,), (axis,), stacked, f"{hf}.weight", f"{gguf}.weight", _same, from_gguf)


def _attention(spec: ModelSpec, layout: Layout) -> Iterator[ParamSpec]:
    size, dim = spec.hidden_size, spec.head_dim
    for name, heads, axis in (
        ("q", spec.num_heads, "heads"),
        ("k", spec.num_kv_heads, "kv_heads"),
        ("v", spec.num_kv_heads, "kv_heads"),
    ):
        hf, gguf = f"model.layers.{{layer}}.self_attn.{name}_proj", f"blk.{{layer}}.attn_{name}"
        from_hf: Transform = partial(_split_heads, heads)
        from_gguf: Transform = from_hf
        if layout.gguf_pairs and name != "v":
            from_gguf = partial(_split_paired_heads, heads)
        yield ParamSpec(
            name, (size, heads, dim), ("embed", axis, "head_dim"), True,
            f"{hf}.weight", f"{gguf}.weight", from_hf, from_gguf,
        )  # fmt: skip
        if spec.qkv_bias:
            yield ParamSpec(
                f"{name}_bias", (heads, dim), (axis, "head_dim"), True,
                f"{hf}.bias", f"{gguf}.bias", from_hf, from_gguf,
            )  # fmt: skip
    hf, gguf = "model.layers.{layer}.self_attn.o_proj", "blk.{layer}.attn_output"
    merge = partial(_merge_heads, spec.num_heads)
    yield ParamSpec(
        "o", (spec.num_heads, dim, size), ("heads", "head_dim", "embed"), True,
        f"{hf}.weight", f"{gguf}.weight", merge, merge,
    )  # fmt: skip
    if spec.output_bias:
        yield ParamSpec("o_bias", (size,), ("embed",), True, f"{hf}.bias", f"{gguf}.bias", _same, _same)


def _mlp(spec: ModelSpec) -> Iterator[ParamSpec]:
    for name, rows, columns in (("gate", "embed", "mlp"), ("up", "embed", "mlp"), ("down", "mlp", "embed")):
        sizes = {"embed": spec.hidden_size, "mlp": spec.intermediate_size}
        hf, gguf = f"model.layers.{{layer}}.mlp.{name}_proj", f"blk.{{layer}}.ffn_{name}"
        yield ParamSpec(
            name, (sizes[rows], sizes[columns]), (rows, columns), True,
            f"{hf}.weight", f"{gguf}.weight", np.transpose, np.transpose,
        )  # fmt: skip
        if spec.mlp_bias:
            yield ParamSpec(
                f"{name}_bias", (sizes[columns],), (columns,), True,
                f"{hf}.bias", f"{gguf}.bias", _same, _same,
            )  # fmt: skip


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _subtract(offset: float, array: np.ndarray) -> np.ndarray:
    return array - np.float32(offset)


def _split_heads(heads: int, array: np.ndarray) -> np.ndarray:
    """[heads * head_dim, embed] to [embed, heads, head_dim]; a bias to [heads, head_dim]."""
    split = array.reshape(heads, -1, *array.shape[1:])
    return split if array.ndim == 1 else split.transpose(2, 0, 1)


def _split_paired_heads(heads: int, array: np.ndarray) -> np.ndarray:
    """Like `_split_heads`, from rows in the order 0, n/2, 1, n/2 + 1, ... of each head."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return _split_heads(heads, pairs.swapaxes(1, 2).reshape(array.shape))


def _merge_heads(heads: int, array: np.ndarray) -> np.ndarray:
    """[embed, heads * head_dim] to [heads, head_dim, embed]."""
    return array.T.reshape(heads, -1, array.shape[0])
