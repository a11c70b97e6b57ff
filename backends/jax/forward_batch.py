"""`ForwardBatch`: a `ScheduleBatch` on the device, padded to a bucket.

All of it travels as one int32 array, a single transfer a step. `Layout` says where each field lies;
the host packs by it, the compiled step unpacks by it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...engine.batch import ScheduleBatch
from ...engine.batch_builder import MAX_FORBIDDEN
from ...engine.request import MAX_LOGIT_BIAS
from ...engine.runner import RunnerCapacity
from ...kernels.paged_attention.rows import RaggedRows
from ...kernels.paged_attention.tpu_blocks import LANES, TABLE_ROOM

MAX_BIAS = MAX_LOGIT_BIAS + MAX_FORBIDDEN  # entries a row: logit_bias, and what a minimum length forbids


class Sampling(NamedTuple):
    """`SamplingArrays` on the device, padded to L; from frequency_penalty on empty unless `Layout.full`."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seeds: jax.Array
    indices: jax.Array
    frequency_penalty: jax.Array
    presence_penalty: jax.Array
    repetition_penalty: jax.Array
    prompt_lens: jax.Array
    bias_rows: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array


class ForwardBatch(NamedTuple):
    """What one compiled step works on. T, S, L are the bucket's; see `ScheduleBatch` for the fields."""

    token_ids: jax.Array  # [T]
    positions: jax.Array  # [T]
    rows: RaggedRows
    logits_positions: jax.Array  # [L]
    logits_rows: jax.Array  # [L]
    num_wanted: jax.Array  # []
    slots: jax.Array  # [L]
    sampling: Sampling


class _Field(NamedTuple):
    name: str
    length: int
    dtype: type
    padding: int | float


@dataclass(frozen=True)
class Layout:
    """Where each field of a step of `tokens` tokens lies in the packed array.

    Padding tokens write to the page after the last usable one; padding rows sample into the slot after
    the last one. Both exist for nothing else. The page table ends with entries of no row, so that the TPU
    kernel can fetch it in pieces from where it lies: without them every layer would copy it.
    """

    tokens: int
    full: bool
    capacity: RunnerCapacity

    @cached_property
    def rows(self) -> int:
        """S and L: rows that a step of so many tokens can hold."""
        return min(self.tokens, self.capacity.max_running_requests)

    @cached_property
    def fields(self) -> tuple[_Field, ...]:
        tokens, rows, capacity = self.tokens, self.rows, self.capacity
        table = -(-(capacity.max_page_indices + TABLE_ROOM) // LANES) * LANES
        spare_position = capacity.num_pages * capacity.page_size
        fields = [
            _Field("counts", 3, np.int32, 0),
            _Field("token_ids", tokens, np.int32, 0),
            _Field("positions", tokens, np.int32, 0),
            _Field("kv_slots", tokens, np.int32, spare_position),
            _Field("cu_q_lens", rows + 1, np.int32, 0),
            _Field("kv_lens", rows, np.int32, 0),
            _Field("page_offsets", rows + 1, np.int32, 0),
            _Field("page_indices", table, np.int32, capacity.num_pages),
            _Field("logits_positions", rows, np.int32, 0),
            _Field("logits_rows", rows, np.int32, 0),
            _Field("slots", rows, np.int32, capacity.max_running_requests),
            _Field("temperature", rows, np.float32, 0.0),
            _Field("top_k", rows, np.int32, 0),
            _Field("top_p", rows, np.float32, 1.0),
            _Field("min_p", rows, np.float32, 0.0),
            _Field("seeds", rows, np.uint32, 0),
            _Field("indices", rows, np.int32, 0),
        ]
        if self.full:
            fields += [
                _Field("frequency_penalty", rows, np.float32, 0.0),
                _Field("presence_penalty", rows, np.float32, 0.0),
                _Field("repetition_penalty", rows, np.float32, 1.0),
                _Field("prompt_lens", rows, np.int32, 0),
                _Field("bias_rows", rows * MAX_BIAS, np.int32, rows),  # out of range: dropped
                _Field("bias_ids", rows * MAX_BIAS, np.int32, 0),
                _Field("bias_values", rows * MAX_BIAS, np.float32, 0.0),
            ]
        return tuple(fields)

    @cached_property
    def size(self) -> int:
        """int32 words of the packed array."""
        return sum(field.length for field in self.fields)

    def pack(self, batches: Sequence[ScheduleBatch | None]) -> np.ndarray:
        """The batch of each data shard as int32 [shards, size], padded; None is padding alone."""
        packed, nothing = np.empty((len(batches), self.size), np.int32), np.empty(0, np.int32)
        for batch, row in zip(batches, packed, strict=True):
            for field, words in self._words(row):
                values = nothing if batch is None else self._values(batch, field.name)
                view: np.ndarray = words.view(field.dtype)
                view[: len(values)] = values
                # cumulative fields stay at their last value, so that padding rows are empty
                cumulative = field.name in ("cu_q_lens", "page_offsets") and len(values)
                view[len(values) :] = values[-1] if cumulative else field.padding
        return packed

    def unpack(self, packed: jax.Array) -> ForwardBatch:
        """The inverse of `pack` for one shard, inside the step. Fields that the shape lacks are empty."""
        got: dict[str, Any] = {
            field.name: words if field.dtype == np.int32 else lax.bitcast_convert_type(words, field.dtype)
            for field, words in self._words(packed)
        }
        nothing = jnp.zeros(0, jnp.int32)
        counts = got["counts"]
        rows = RaggedRows(
            **{name: got[name] for name in RaggedRows._fields if name in got},
            num_rows=counts[0],
            num_decode_rows=counts[1],
        )
        sampling = Sampling(**{name: got.get(name, nothing) for name in Sampling._fields})
        return ForwardBatch(
            rows=rows,
            num_wanted=counts[2],
            sampling=sampling,
            **{name: got[name] for name in ForwardBatch._fields if name in got},
        )

    def _words(self, packed: Any) -> Iterator[tuple[_Field, Any]]:
        start = 0
        for field in self.fields:
            yield field, packed[start : start + field.length]
            start += field.length

    @staticmethod
    def _values(batch: ScheduleBatch, name: str) -> np.ndarray:
        if name == "counts":
            return np.asarray([len(batch.rows), batch.num_decode_rows, len(batch.sampled)], np.int32)
        return getattr(batch if hasattr(batch, name) else batch.sampling, name)
