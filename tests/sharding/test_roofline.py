"""The least time of a step, by hand."""

import pytest

from radixmesh.sharding.collectives import Collective
from radixmesh.sharding.roofline import HOP_SECONDS, roofline
from radixmesh.sharding.topology import tpu_chips

V6E = tpu_chips()["v6e"]  # 1640 GB/s, 918 TFLOP/s, 800 GB/s of links


def test_decode_is_bound_by_memory() -> None:
    times = roofline(V6E, hbm_bytes=16.4e9, flops=9.18e11, collectives=[])
    assert (times.memory, times.compute, times.interconnect) == pytest.approx((0.01, 0.001, 0.0))
    assert times.bound == "memory"
    assert times.seconds == pytest.approx(0.01)
    assert times.slow_seconds == pytest.approx(0.01 / 0.6)


def test_transfers_come_after_the_rest() -> None:
    ring = Collective("all-reduce", group_size=8, bytes=400_000_000, count=2)
    times = roofline(V6E, hbm_bytes=0, flops=9.18e11, collectives=[ring])
    assert times.interconnect == pytest.approx(2 * (2 * 7 / 8 * 400e6 / 400e9 + 14 * HOP_SECONDS))
    assert times.bound == "interconnect"
    assert times.seconds == pytest.approx(0.001 + times.interconnect)


def test_small_transfers_cost_their_hops() -> None:
    small = Collective("all-reduce", group_size=8, bytes=8, count=1)
    assert roofline(V6E, 0, 0, [small]).seconds == pytest.approx(14e-6, rel=1e-3)
