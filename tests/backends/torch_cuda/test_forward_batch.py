"""Packing: what arrives on the device is the batch, and padded decode steps say what exact ones say."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from radixmesh.backends.torch_cuda.forward_batch import Layout, pack_pinned, worth_sharing
from radixmesh.backends.torch_cuda.graphs import decode_buckets, sharing_buckets
from radixmesh.backends.torch_cuda.warm_batches import chunks_batch
from radixmesh.engine.batch import SamplingVariant, ScheduleBatch
from radixmesh.engine.runner import RunnerCapacity

CAPACITY = RunnerCapacity(
    num_pages=20, page_size=4, max_running_requests=8, max_step_tokens=64, max_page_indices=48
)
CPU = torch.device("cpu")


def unpacked(layout: Layout, batch: ScheduleBatch) -> dict[str, Any]:
    found = layout.unpack(pack_pinned(layout, batch, CPU))
    flat = {**found._asdict(), **found.rows._asdict(), **found.sampling._asdict()}
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in flat.items()}


@pytest.mark.parametrize("variant", SamplingVariant)
def test_every_field_arrives(variant: SamplingVariant) -> None:
    batch = chunks_batch([5, 1, 9], CAPACITY, variant)
    sampling = replace(
        batch.sampling,
        bias_rows=np.array([0, 2], np.int32),
        bias_ids=np.array([7, 8], np.int32),
        bias_values=np.array([1, -np.inf], np.float32),
        seeds=np.array([1, 2, 2**32 - 1], np.uint32),
        asked_ids=np.array([[4, 5], [6, 0], [0, 0]], np.int32),
        given_ids=np.array([-1, 9, -1], np.int32),
    )
    batch = replace(batch, sampling=sampling)
    layout = Layout.exact(batch, CAPACITY)
    got = unpacked(layout, batch)
    assert (got["num_rows"], got["num_decode_rows"]) == (3, 0)
    for field in layout.fields:
        assert layout.starts[field.name] % 4 == 0  # 16 bytes
        source = batch if hasattr(batch, field.name) else batch.sampling
        np.testing.assert_array_equal(got[field.name].view(field.dtype), getattr(source, field.name))
    assert ("seeds" in layout.starts) == (variant >= SamplingVariant.SAMPLE)
    assert ("bias_ids" in layout.starts) == (variant == SamplingVariant.FULL)


def test_rows_that_fill_a_bucket_have_no_keys_and_write_to_nobodys_place() -> None:
    batch = replace(chunks_batch([1, 1, 1], CAPACITY, SamplingVariant.SAMPLE), num_decode_rows=3)
    got = unpacked(Layout.decode(8, SamplingVariant.SAMPLE, CAPACITY), batch)
    assert (got["num_rows"], got["num_decode_rows"]) == (8, 8)
    assert got["cu_q_lens"].tolist() == list(range(9))
    assert got["logits_positions"].tolist() == got["logits_rows"].tolist() == list(range(8))
    assert got["kv_lens"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert got["page_offsets"].tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3]
    assert got["kv_slots"][3:].tolist() == [CAPACITY.num_pages * CAPACITY.page_size] * 5
    assert got["slots"].tolist() == [0, 1, 2, 8, 8, 8, 8, 8]
    assert len(got["page_indices"]) == 3  # no more than the step has is copied


def sharing(rows: int, pages: int) -> ScheduleBatch:
    """Three rows, the last `rows` of which share so many pages."""
    batch = replace(chunks_batch([1, 1, 1], CAPACITY, SamplingVariant.SAMPLE), num_decode_rows=3)
    group_rows, shared_pages = np.zeros((2, 3), np.int32)
    group_rows[3 - rows], shared_pages[3 - rows :] = rows, pages
    return replace(batch, group_rows=group_rows, shared_pages=shared_pages)


def test_groups_arrive_where_the_layout_has_them() -> None:
    batch = sharing(2, 5000)
    assert Layout.exact(batch, CAPACITY).shares
    for layout in (Layout.exact(batch, CAPACITY), Layout.decode(8, SamplingVariant.SAMPLE, CAPACITY, True)):
        got = unpacked(layout, batch)
        padding = [0] * (layout.rows - 3)
        assert got["group_rows"].tolist() == [0, 2, 0, *padding]
        assert got["shared_pages"].tolist() == [0, 5000, 5000, *padding]
    got = unpacked(Layout.decode(8, SamplingVariant.SAMPLE, CAPACITY), batch)
    assert got["group_rows"] is None and got["shared_pages"] is None


def test_sharing_is_worth_its_launch_by_the_keys_that_are_not_read_again() -> None:
    assert not worth_sharing(chunks_batch([1, 1], CAPACITY), 4)
    assert worth_sharing(sharing(2, 4096), 4) and not worth_sharing(sharing(2, 4095), 4)
    assert worth_sharing(sharing(3, 2048), 4) and not worth_sharing(sharing(3, 2047), 4)


@pytest.mark.parametrize("rows", [1, 16, 17, 256, 1000])
def test_buckets_of_rows_that_share(rows: int) -> None:
    buckets = sharing_buckets(rows)
    assert buckets[-1] == rows and list(buckets) == sorted(set(buckets))
    assert all(after <= 1.5 * before for before, after in zip(buckets, buckets[1:], strict=False))


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 64, 100, 256, 1000])
def test_buckets(rows: int) -> None:
    buckets = decode_buckets(rows)
    assert buckets[-1] == rows and list(buckets) == sorted(set(buckets))
    for wanted in range(1, rows + 1):
        bucket = next(size for size in buckets if size >= wanted)
        assert bucket <= max(wanted + 7, wanted * 1.25 + 1)
