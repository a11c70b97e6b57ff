"""GGUF files: metadata to `ModelSpec`, and tensors dequantized to float32.

What a file leaves out is what llama.cpp assumes for that architecture.
"""

import struct
from typing import Any, Literal

import numpy as np

from ...engine.errors import ModelError
from ...engine.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from .rope import inverse_frequencies
from .spec import RopeSpec

_F32, _F16 = 0, 1  # ggml's numbers of tensor types
_AT_ONCE = 16 << 20  # bytes that are dequantized at once


class GgufFields:
    """Reads the metadata of one file; keys are given without the architecture's prefix."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.architecture = str(header.metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `<architecture>.<key>`, or the default when the file has none."""
        return self.header.metadata.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        """The value of `<architecture>.<key>`; ModelError when the file has none."""
        value = self.get(key)
        if value is None:
            raise ModelError(f"{self.header.path} has no {self.architecture}.{key} in its metadata")
        return value

    def same_in_all_layers(self, key: str, default: Any = None) -> int:
        """An integer that may be stored once per layer; ModelError when layers differ."""
        value = self.need(key) if default is None else self.get(key, default)
        values = set(np.atleast_1d(value).tolist())
        if len(values) != 1:
            raise ModelError(
                f"{self.architecture}.{key} differs between layers ({sorted(values)}); accepted is one value"
            )
        return int(values.pop())

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a tensor in numpy's order; ModelError when the file has none of that name."""
        if tensor not in self.header.tensors:
            raise ModelError(f"{self.header.path} has no tensor {tensor}")
        return self.header.tensors[tensor].shape

    def has(self, tensor: str) -> bool:
        return tensor in self.header.tensors


def gguf_dimensions(fields: GgufFields) -> dict[str, Any]:
    """The fields of `ModelSpec` that every architecture stores alike, as keyword arguments."""
    vocab_size, hidden_size = fields.shape("token_embd.weight")
    num_heads = fields.same_in_all_layers("attention.head_count")
    head_dim = int(fields.get("attention.key_length", hidden_size // num_heads))
    if (value_dim := fields.get("attention.value_length", head_dim)) != head_dim:
        raise ModelError(f"attention.value_length is {value_dim}; accepted is the key's length, {head_dim}")
    if experts := fields.get("expert_count", 0):
        raise ModelError(
            f"{fields.architecture}.expert_count is {experts}; accepted are models without experts"
        )
    return dict(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=fields.same_in_all_layers("feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=fields.same_in_all_layers("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        context_length=int(fields.need("context_length")),
        norm_eps=float(fields.need("attention.layer_norm_rms_epsilon")),
        attention_scale=float(fields.get("attention.scale", head_dim**-0.5)),
        tie_embeddings=not fields.has("output.weight"),
        dtype=gguf_dtype(fields.header),
    )


def gguf_rope(fields: GgufFields, head_dim: int) -> RopeSpec:
    """The rope of full-attention layers. Raises ModelError for a kind that is not served."""
    rotated = fields.get("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise ModelError(
            f"rope.dimension_count is {rotated}; accepted is the whole head, {head_dim} dimensions"
        )
    base = float(fields.get("rope.freq_base", 10000.0))
    kind = fields.get("rope.scaling.type", "none")
    factor = float(fields.get("rope.scaling.factor") or fields.get("rope.scale_linear") or 1.0)
    if fields.has("rope_freqs.weight"):
        return _rope_of_factors(fields, base, head_dim)
    if kind == "yarn":
        original = int(fields.need("rope.scaling.original_context_length"))
        return RopeSpec(
            base,
            "yarn",
            factor,
            original_context=original,
            beta_fast=float(fields.get("rope.scaling.yarn_beta_fast", 32.0)),
            beta_slow=float(fields.get("rope.scaling.yarn_beta_slow", 1.0)),
            attention_factor=float(fields.get("rope.scaling.attn_factor", 1.0)) * (1 + 0.1 * np.log(factor)),
        )
    if kind == "linear" or (kind == "none" and "rope.scaling.type" not in fields.header.metadata):
        return RopeSpec(base, "linear", factor) if factor != 1.0 else RopeSpec(base)
    if kind != "none":
        raise ModelError(f"rope.scaling.type is {kind!r}; accepted are none, linear and yarn")
    return RopeSpec(base)


def _rope_of_factors(fields: GgufFields, base: float, head_dim: int) -> RopeSpec:
    """Llama 3's scaling is stored as a tensor that divides each frequency; find the formula behind it."""
    stored = read_tensor(fields.header, fields.header.tensors["rope_freqs.weight"]).reshape(-1)
    plain = RopeSpec(base)
    if np.allclose(stored, 1.0):
        return plain
    rope = RopeSpec(base, "llama3", float(stored.max()), 1.0, 4.0, 8192)
    expected = inverse_frequencies(plain, head_dim) / inverse_frequencies(rope, head_dim)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise ModelError(
            "rope_freqs.weight holds frequency factors of an unknown kind; accepted are those of Llama 3"
            " (low_freq_factor 1, high_freq_factor 4, original context 8192)"
        )
    return rope


def gguf_dtype(header: GgufHeader) -> str:
    """The dtype that stands for the file's matrices: float32, float16, else (quantized too) bfloat16."""
    kinds = {t.type_id for t in header.tensors.values() if len(t.shape) > 1}
    if kinds == {_F32}:
        return "float32"
    return "float16" if kinds == {_F16} else "bfloat16"


def without_weights(header: GgufHeader) -> bytes:
    """The file as it is needed beside weights in another format: metadata and the list of tensors.

    Of the tensors only rope's factors come along, which are a description rather than a weight.
    """
    with open(header.path, "rb") as file:
        data = bytearray(file.read(min(tensor.offset for tensor in header.tensors.values())))
    if factors := header.tensors.get("rope_freqs.weight"):
        name = factors.name.encode()
        rank = len(factors.shape)
        entry = struct.pack(f"<Q{len(name)}sI{rank}Q", len(name), name, rank, *reversed(factors.shape))
        after = data.index(entry) + len(entry)
        data[after : after + 12] = struct.pack("<IQ", _F32, 0)  # now the first tensor
        data += read_tensor(header, factors).astype("<f4").tobytes()
    return bytes(data)


class GgufCheckpoint:
    """Tensors of a GGUF file by name, dequantized to float32 when read."""

    kind: Literal["gguf"] = "gguf"

    def __init__(self, path: str) -> None:
        self._header = read_gguf_header(path)

    def names(self) -> set[str]:
        return set(self._header.tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32. Raises ModelError for a quantization that cannot be undone."""
        return read_tensor(self._header, self._header.tensors[name])


def read_tensor(header: GgufHeader, tensor: GgufTensor) -> np.ndarray:
    """One tensor as float32, in numpy's axis order; unquantized float32 stays mapped."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        kind = GGMLQuantizationType(tensor.type_id)
        block, size = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ModelError(
            f"tensor {tensor.name} of {header.path} has the unknown type {tensor.type_id}"
        ) from None
    *rows, columns = tensor.shape
    shape = (*rows, columns // block * size)
    try:
        data = np.memmap(header.path, np.uint8, "r", tensor.offset, shape)
    except ValueError as error:
        raise ModelError(f"tensor {tensor.name} lies beyond the end of {header.path}") from error
    if kind == _F32:
        return data.view(np.float32)
    if kind == _F16:
        return data.view(np.float16).astype(np.float32)
    stored = data.reshape(-1, shape[-1])
    whole = np.empty((len(stored), columns), np.float32)
    step = max(1, _AT_ONCE // shape[-1])
    try:
        for start in range(0, len(stored), step):  # dequantize holds its result twice
            whole[start : start + step] = dequantize(stored[start : start + step], kind)
        return whole.reshape(tensor.shape)
    except NotImplementedError as error:
        raise ModelError(
            f"tensor {tensor.name} of {header.path} is quantized as {kind.name}, which cannot be dequantized"
        ) from error
