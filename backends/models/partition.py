"""How a model is cut over tensor parallel devices, and which sizes can cut it."""

from dataclasses import replace

from ...engine.errors import ConfigError
from .spec import ModelSpec


def partition(spec: ModelSpec, tensor: int) -> ModelSpec:
    """`spec` as `tensor` shards hold it: KV heads repeated until there is one for each.

    Raises ConfigError, naming the sizes that can, where heads or MLP features do not come out even.
    """
    if not _divides(spec, tensor):
        sizes = [str(size) for size in range(1, spec.num_heads + 1) if _divides(spec, size)]
        raise ConfigError(
            f"tp_size is {tensor}; {spec.num_heads} heads, {spec.num_kv_heads} KV heads and"
            f" {spec.intermediate_size} MLP features can be split by {', '.join(sizes)}"
        )
    return replace(spec, num_kv_heads=max(spec.num_kv_heads, tensor))


def _divides(spec: ModelSpec, tensor: int) -> bool:
    kv_heads = spec.num_kv_heads
    whole = spec.num_heads % tensor == 0 and spec.intermediate_size % tensor == 0
    return whole and (kv_heads % tensor == 0 or tensor % kv_heads == 0)
