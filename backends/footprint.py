"""What one device of a mesh holds, reads and computes for a model: arithmetic, no framework.

The same tables that place parameters on real devices (`ParamSpec` axes, `ShardingRules`) say here how
much of each is a device's share. Activations are not counted: they stay on the chip.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..sharding.collectives import Collective
from ..sharding.rules import ShardingRules
from .models.families.registry import param_table
from .models.params import ParamSpec
from .models.spec import ModelSpec

TOKEN_ID_BYTES = 4  # the pool keeps each token's id beside its keys and values


@dataclass(frozen=True)
class Work:
    """One device's share of a step."""

    hbm_bytes: float
    flops: float
    collectives: tuple[Collective, ...]


@dataclass(frozen=True)
class Footprint:
    """A model spread over `data` groups of `tensor` devices. Each group has all weights and its own rows
    and pages. dtype_bytes, kv_bytes: of an element of the weights, and of the KV pool."""

    spec: ModelSpec
    data: int
    tensor: int
    dtype_bytes: int
    kv_bytes: int
    rules: ShardingRules = ShardingRules()

    @property
    def weight_bytes(self) -> int:
        """All weights on one device."""
        return self.dtype_bytes * sum(self._elements(param) for param in param_table(self.spec))

    @property
    def kv_heads(self) -> int:
        """KV heads on one device; with fewer heads than devices each head is on several."""
        return max(1, self.spec.num_kv_heads // self.tensor)

    @property
    def token_bytes(self) -> int:
        """What a token in the pool takes on one device, all layers together."""
        return self.spec.num_layers * self._kv_token_bytes + TOKEN_ID_BYTES

    def decode(self, rows: int, context: int) -> Work:
        """A step in which `rows` requests, all groups together, get a token each after `context` others."""
        rows = math.ceil(rows / self.data)
        keys = rows * self._keys_met(context)
        return Work(
            hbm_bytes=self._read_weight_bytes + keys * self._kv_token_bytes,
            flops=self._matmul_flops(rows, rows) + keys * self._flops_a_key,
            collectives=self._collectives(rows),
        )

    def prefill(self, tokens: int) -> Work:
        """A step in which every group computes a prompt of so many tokens, none of them cached."""
        keys = sum(_window_sum(layer.window, tokens) for layer in self.spec.layers)
        written = tokens * self.spec.num_layers * self._kv_token_bytes
        return Work(
            hbm_bytes=self._read_weight_bytes + written,
            flops=self._matmul_flops(tokens, 1) + keys * self._flops_a_key,
            collectives=self._collectives(tokens),
        )

    @property
    def _kv_token_bytes(self) -> int:
        """Keys and values of a token in one layer."""
        return 2 * self.kv_heads * self.spec.head_dim * self.kv_bytes

    @property
    def _flops_a_key(self) -> int:
        """For one query: its product with a key, and the key's value times its weight."""
        return 4 * self.spec.num_heads // self.tensor * self.spec.head_dim

    @property
    def _read_weight_bytes(self) -> int:
        """An untied embedding is looked up, not read whole."""
        unread = 0 if self.spec.tie_embeddings else self.dtype_bytes * self._elements(self._named("embed"))
        return self.weight_bytes - unread

    def _keys_met(self, context: int) -> int:
        """Keys that one decode row reads, summed over layers."""
        return sum(min(context, layer.window or context) for layer in self.spec.layers)

    def _matmul_flops(self, tokens: int, logits_rows: int) -> float:
        layers = sum(self._elements(param) for param in self._matrices())
        table = self._elements(self._named("embed"))
        return 2.0 * (tokens * layers + logits_rows * table)

    def _matrices(self) -> Iterator[ParamSpec]:
        return (param for param in param_table(self.spec) if param.stacked and len(param.shape) > 1)

    def _named(self, name: str) -> ParamSpec:
        return next(param for param in param_table(self.spec) if param.name == name)

    def _elements(self, param: ParamSpec) -> int:
        """Elements of a parameter on one device, all layers together."""
        size = self.spec.num_layers if param.stacked else 1
        for length, axis in zip(param.shape, param.axes, strict=True):
            split = self.tensor if axis is not None and self.rules.axes[axis] == "tensor" else 1
            size *= self.kv_heads if axis == "kv_heads" else math.ceil(length / split)
        return size

    def _collectives(self, tokens: int) -> tuple[Collective, ...]:
        """After each sublayer, and after the vocabulary-parallel embedding, partial sums are added up."""
        if self.tensor == 1:
            return ()
        size = tokens * self.spec.hidden_size * self.dtype_bytes
        return (Collective("all-reduce", self.tensor, size, 2 * self.spec.num_layers + 1),)


def tensor_sizes(spec: ModelSpec) -> list[int]:
    """The numbers of devices that a model's heads can be split over."""
    heads, kv_heads = spec.num_heads, spec.num_kv_heads
    return [
        size
        for size in range(1, heads + 1)
        if heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
        and spec.intermediate_size % size == 0
    ]  # fmt: skip


def _window_sum(window: int | None, tokens: int) -> int:
    """Keys that the tokens of a fresh prompt see in one layer, all together."""
    seen = min(window or tokens, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen
