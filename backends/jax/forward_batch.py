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

from ...engine.batch import U32, SamplingVariant, ScheduleBatch
from ...engine.batch_builder import MAX_FORBIDDEN
from ...engine.request import MAX_LOGIT_BIAS, MAX_LOGPROB_TOKEN_IDS
from ...engine.runner import RunnerCapacity
from ...kernels.paged_attention.rows import RaggedRows
from ...kernels.paged_attention.tpu_blocks import LANES, TABLE_ROOM
from .buckets import Part, Shape

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
    asked_ids: jax.Array  # [L, MAX_LOGPROB_TOKEN_IDS]
    given_ids: jax.Array


class ForwardBatch(NamedTuple):
    """What one compiled step works on. T, S, L are the bucket's; see `ScheduleBatch` for the fields. Those
    that the part of the step does without are empty."""

    token_ids: jax.Array  # [T]
    positions: jax.Array  # [T]
    rows: RaggedRows
    logits_positions: jax.Array  # [L]
    logits_rows: jax.Array  # [L]
    num_wanted: jax.Array  # []
    reshapes: jax.Array  # [] whether the variant is FULL, where that is not the shape's to say
    slots: jax.Array  # [L]
    sampling: Sampling
    masks: jax.Array  # [L, words] uint32, see `PendingTokens.constrain`; empty unless `Part.SAMPLE`


# what the halves of a step do without
_LEFT_OUT: dict[Part, tuple[str, ...]] = {
    Part.WHOLE: (),
    Part.FORWARD: ("logits_rows", "slots", *Sampling._fields),
    Part.SAMPLE: ("token_ids", "positions", "kv_slots", "cu_q_lens", "logits_positions"),
}


class _Field(NamedTuple):
    name: str
    length: int
    dtype: type
    padding: int | float


@dataclass(frozen=True)
class Layout:
    """Where each field of a step of some shape lies in the packed array.

    Padding tokens write to the page after the last usable one; padding rows sample into the slot after
    the last one. Both exist for nothing else. The page table ends with entries of no row, so that the TPU
    kernel can fetch it in pieces from where it lies: without them every layer would copy it.
    """

    shape: Shape
    capacity: RunnerCapacity
    vocab_size: int

    @cached_property
    def rows(self) -> int:
        """S and L: rows that a step of so many tokens can hold."""
        return min(self.shape.tokens, self.capacity.max_running_requests)

    @cached_property
    def mask_words(self) -> int:
        """uint32 words of a row's mask."""
        return -(-self.vocab_size // 32)

    @cached_property
    def fields(self) -> tuple[_Field, ...]:
        (tokens, full, part), rows, capacity = self.shape, self.rows, self.capacity
        table = -(-(capacity.max_page_indices + TABLE_ROOM) // LANES) * LANES
        spare_position = capacity.num_pages * capacity.page_size
        fields = [
            _Field("counts", 4, np.int32, 0),
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
        if full:
            fields += [
                _Field("frequency_penalty", rows, np.float32, 0.0),
                _Field("presence_penalty", rows, np.float32, 0.0),
                _Field("repetition_penalty", rows, np.float32, 1.0),
                _Field("prompt_lens", rows, np.int32, 0),
                _Field("bias_rows", rows * MAX_BIAS, np.int32, rows),  # out of range: dropped
                _Field("bias_ids", rows * MAX_BIAS, np.int32, 0),
                _Field("bias_values", rows * MAX_BIAS, np.float32, 0.0),
                _Field("asked_ids", rows * MAX_LOGPROB_TOKEN_IDS, np.int32, 0),
                _Field("given_ids", rows, np.int32, -1),
            ]
        if part == Part.SAMPLE:
            fields.append(_Field("masks", rows * self.mask_words, np.uint32, 0xFFFFFFFF))
        return tuple(field for field in fields if field.name not in _LEFT_OUT[part])

    @cached_property
    def size(self) -> int:
        """int32 words of the packed array."""
        return sum(field.length for field in self.fields)

    def pack(
        self, batches: Sequence[ScheduleBatch | None], masks: Sequence[U32 | None] | None = None
    ) -> np.ndarray:
        """The batch of each data shard as int32 [shards, size], padded; None is padding alone.

        masks: those of each shard's constrained rows, for `Part.SAMPLE`.
        """
        packed, nothing = np.empty((len(batches), self.size), np.int32), np.empty(0, np.int32)
        for batch, mask, row in zip(batches, masks or [None] * len(batches), packed, strict=True):
            for field, words in self._words(row):
                values = nothing if batch is None else self._values(batch, mask, field.name)
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
        nothing, counts = jnp.zeros(0, jnp.int32), got["counts"]
        got |= {"num_rows": counts[0], "num_decode_rows": counts[1], "num_wanted": counts[2]}
        got["reshapes"] = counts[3] > 0
        for name in ("masks", "asked_ids"):
            got[name] = got.get(name, nothing).reshape(self.rows, -1)
        known = [name for name in RaggedRows._fields if name not in RaggedRows._field_defaults]
        got["rows"] = RaggedRows(**{name: got.get(name, nothing) for name in known})  # not what rows share
        got["sampling"] = Sampling(**{name: got.get(name, nothing) for name in Sampling._fields})
        return ForwardBatch(**{name: got.get(name, nothing) for name in ForwardBatch._fields})

    def _words(self, packed: Any) -> Iterator[tuple[_Field, Any]]:
        start = 0
        for field in self.fields:
            yield field, packed[start : start + field.length]
            start += field.length

    def _values(self, batch: ScheduleBatch, masks: U32 | None, name: str) -> np.ndarray:
        if name == "counts":
            full = batch.variant == SamplingVariant.FULL
            return np.asarray([len(batch.rows), batch.num_decode_rows, len(batch.sampled), full], np.int32)
        if name == "masks":
            words = np.full((len(batch.sampled), self.mask_words), 0xFFFFFFFF, np.uint32)
            if masks is not None:
                words[batch.constrained] = masks
            return words.reshape(-1)
        if name == "asked_ids":
            asked = batch.sampling.asked_ids
            return np.pad(asked, ((0, 0), (0, MAX_LOGPROB_TOKEN_IDS - asked.shape[1]))).reshape(-1)
        return getattr(batch if hasattr(batch, name) else batch.sampling, name)
