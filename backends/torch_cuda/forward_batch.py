"""`ForwardBatch`: a `ScheduleBatch` on the device.

All of it travels as one int32 array, a single copy a step. `Layout` says where each field lies: the
host packs by it, and the device's fields are views of the copy. Eager steps have a layout of their own
size; a captured graph has the layout of its bucket, and one array that every step is copied into.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...engine.batch import SamplingVariant, ScheduleBatch
from ...engine.runner import RunnerCapacity
from ...kernels.paged_attention.rows import RaggedRows

_ALIGNMENT = 4  # words: fields begin at 16 bytes, for which Triton compiles wider loads

# Keys, of all rows together, that need not be read a second time. Of fewer the launch that reads them once a
# group takes longer than it saves: on an H100, with 8 KV heads of 128.
_WORTH_SHARING = 16384


def worth_sharing(batch: ScheduleBatch, page_size: int) -> bool:
    """Whether reading shared pages once for all rows of a group makes a step faster."""
    if not len(batch.group_rows):
        return False
    again = batch.shared_pages.sum() - batch.shared_pages[batch.group_rows > 0].sum()
    return bool(again * page_size >= _WORTH_SHARING)


class Sampling(NamedTuple):
    """`SamplingArrays` on the device; fields that the layout's variant lacks are empty."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor  # int32, the bits of the unsigned seed
    indices: Tensor
    frequency_penalty: Tensor
    presence_penalty: Tensor
    repetition_penalty: Tensor
    prompt_lens: Tensor
    bias_rows: Tensor
    bias_ids: Tensor
    bias_values: Tensor
    asked_ids: Tensor  # [L, K]
    given_ids: Tensor


class ForwardBatch(NamedTuple):
    """What one step works on; see `ScheduleBatch` for the fields. In `rows` the two counts are host
    integers, which bound the launches of kernels."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    rows: RaggedRows
    logits_positions: Tensor  # [L]
    logits_rows: Tensor  # [L]
    slots: Tensor  # [L]
    sampling: Sampling


class _Field(NamedTuple):
    name: str
    length: int
    dtype: type
    padding: int | float


@dataclass(frozen=True)
class Layout:
    """Where each field lies of a step with so many tokens, rows, wanted positions, bias entries, ids whose
    logprobs each wanted position asks for, and tokens that are given; with what rows share, or without.

    A step may be smaller if all its rows decode: the layout's other rows have no keys, write to the page
    after the last usable one and sample into the slot after the last one.
    """

    tokens: int
    rows: int
    wanted: int
    decode_rows: int
    pages: int
    biases: int
    asked: int
    given: int
    variant: SamplingVariant
    capacity: RunnerCapacity
    shares: bool = False

    @staticmethod
    def exact(batch: ScheduleBatch, capacity: RunnerCapacity, tokens: int | None = None) -> "Layout":
        """The layout without padding, or with padding to so many tokens, which belong to no row."""
        return Layout(
            tokens=tokens or batch.num_tokens,
            rows=len(batch.kv_lens),
            wanted=len(batch.logits_rows),
            decode_rows=batch.num_decode_rows,
            pages=len(batch.page_indices),
            biases=len(batch.sampling.bias_ids),
            asked=batch.sampling.asked_ids.shape[1],
            given=len(batch.sampling.given_ids),
            variant=batch.variant,
            capacity=capacity,
            shares=worth_sharing(batch, capacity.page_size),
        )

    @staticmethod
    def decode(
        bucket: int, variant: SamplingVariant, capacity: RunnerCapacity, shares: bool = False
    ) -> "Layout":
        """The layout of up to `bucket` decode rows."""
        pages = capacity.max_page_indices
        return Layout(bucket, bucket, bucket, bucket, pages, 0, 0, 0, variant, capacity, shares)

    @cached_property
    def fields(self) -> tuple[_Field, ...]:
        """The page table comes last: of it a step copies no more than it has."""
        capacity, tokens, rows, wanted = self.capacity, self.tokens, self.rows, self.wanted
        fields = [
            _Field("token_ids", tokens, np.int32, 0),
            _Field("positions", tokens, np.int32, 0),
            _Field("kv_slots", tokens, np.int32, capacity.num_pages * capacity.page_size),
            _Field("cu_q_lens", rows + 1, np.int32, 0),
            _Field("kv_lens", rows, np.int32, 0),
            _Field("page_offsets", rows + 1, np.int32, 0),
            _Field("logits_positions", wanted, np.int32, 0),
            _Field("logits_rows", wanted, np.int32, 0),
            _Field("slots", wanted, np.int32, capacity.max_running_requests),
        ]
        if self.shares:
            fields += [_Field("group_rows", rows, np.int32, 0), _Field("shared_pages", rows, np.int32, 0)]
        if self.variant >= SamplingVariant.SAMPLE:
            fields += [
                _Field("temperature", wanted, np.float32, 0.0),
                _Field("top_k", wanted, np.int32, 0),
                _Field("top_p", wanted, np.float32, 1.0),
                _Field("min_p", wanted, np.float32, 0.0),
                _Field("seeds", wanted, np.uint32, 0),
                _Field("indices", wanted, np.int32, 0),
            ]
        if self.variant == SamplingVariant.FULL:
            fields += [
                _Field("frequency_penalty", wanted, np.float32, 0.0),
                _Field("presence_penalty", wanted, np.float32, 0.0),
                _Field("repetition_penalty", wanted, np.float32, 1.0),
                _Field("prompt_lens", wanted, np.int32, 0),
                _Field("bias_rows", self.biases, np.int32, 0),
                _Field("bias_ids", self.biases, np.int32, 0),
                _Field("bias_values", self.biases, np.float32, 0.0),
                _Field("asked_ids", wanted * self.asked, np.int32, 0),
                _Field("given_ids", self.given, np.int32, 0),
            ]
        return (*fields, _Field("page_indices", self.pages, np.int32, 0))

    @cached_property
    def starts(self) -> dict[str, int]:
        """The first word of each field."""
        starts, at = {}, 0
        for field in self.fields:
            starts[field.name] = at
            at += -(-field.length // _ALIGNMENT) * _ALIGNMENT
        return starts

    def size(self, pages: int | None = None) -> int:
        """int32 words of the packed array, with so many page table entries; default: all."""
        return self.starts["page_indices"] + (self.pages if pages is None else pages)

    def pack(self, batch: ScheduleBatch, packed: np.ndarray) -> None:
        """Write the batch into int32 `packed` of `size(len(batch.page_indices))` words."""
        for field in self.fields:
            values = getattr(batch if hasattr(batch, field.name) else batch.sampling, field.name).reshape(-1)
            start, count = self.starts[field.name], len(values)
            view: np.ndarray = packed[start : start + field.length].view(field.dtype)
            view[:count] = values
            if count < len(view):
                view[count:] = self._padding(field, values)

    def _padding(self, field: _Field, values: np.ndarray) -> Any:
        """Rows added to a decode batch: one token each, wanted, and no keys."""
        if field.name in ("cu_q_lens", "logits_positions", "logits_rows"):
            return np.arange(len(values), field.length)
        return values[-1] if field.name == "page_offsets" else field.padding

    def unpack(self, packed: Tensor) -> ForwardBatch:
        """The fields of a packed array, as views of it."""
        got: dict[str, Any] = {}
        for field in self.fields:
            words = packed[self.starts[field.name] :][: field.length]
            got[field.name] = words.view(torch.float32) if field.dtype == np.float32 else words
        got["asked_ids"] = got.get("asked_ids", packed[:0]).view(-1, self.asked or 1)
        rows = RaggedRows(
            **{name: got[name] for name in RaggedRows._fields if name in got},
            num_rows=self.rows,
            num_decode_rows=self.decode_rows,
        )
        sampling = Sampling(**{name: got.get(name, packed[:0]) for name in Sampling._fields})
        own = {name: got[name] for name in ForwardBatch._fields if name in got}
        return ForwardBatch(rows=rows, sampling=sampling, **own)


def pack_pinned(layout: Layout, batch: ScheduleBatch, device: torch.device) -> Tensor:
    """The packed batch on the host, in memory that a GPU can copy from while the host goes on."""
    words = layout.size(len(batch.page_indices))
    packed = torch.empty(words, dtype=torch.int32, pin_memory=device.type != "cpu")
    layout.pack(batch, packed.numpy())
    return packed
