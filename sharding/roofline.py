"""The least time that a step can take on a chip: each resource at its peak, none waiting for another.

Estimates, not measurements: the slowest of reading memory and multiplying, and after it the transfers
between devices, which the layers of a model wait for. After Williams et al. 2009.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .collectives import Collective
from .topology import Chip

HOP_SECONDS = 1e-6  # what a neighbour-to-neighbour transfer takes however small it is
# What the slow end of a range assumes, within what engines are reported to reach; see docs/planning.md.
REACHED_BANDWIDTH = 0.6
REACHED_FLOPS = 0.4


@dataclass(frozen=True)
class Roofline:
    """Seconds that one device needs for its share of a step, by resource."""

    memory: float  # HBM bytes over bandwidth
    compute: float  # FLOPs over peak
    interconnect: float  # the transfers' bytes over half the links' bandwidth, and their hops

    @property
    def seconds(self) -> float:
        """The least time of the step."""
        return max(self.memory, self.compute) + self.interconnect

    @property
    def slow_seconds(self) -> float:
        """The same with bandwidth and matrix units used as well as good engines do."""
        return max(self.memory / REACHED_BANDWIDTH, self.compute / REACHED_FLOPS) + self.interconnect

    @property
    def bound(self) -> str:
        """What takes most of it: "memory", "compute" or "interconnect"."""
        shares = {"memory": self.memory, "compute": self.compute, "interconnect": self.interconnect}
        return max(shares, key=lambda name: shares[name])


def roofline(chip: Chip, hbm_bytes: float, flops: float, collectives: Iterable[Collective]) -> Roofline:
    """The times of a device that moves so many bytes, does so many operations and takes part in
    `collectives`."""
    one_way = chip.ici_bandwidth / 2
    wire = sum(each.count * (each.wire_bytes / one_way + each.hops * HOP_SECONDS) for each in collectives)
    return Roofline(hbm_bytes / chip.bandwidth, flops / chip.flops, wire)
