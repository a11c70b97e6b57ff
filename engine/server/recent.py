"""`Recent`: latencies of the last two minutes, in bounded memory whatever the traffic."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SLOTS = 60
SLOT_SECONDS = 2.0
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

_FINEST = 1e-5  # seconds; what is shorter counts as this
_STEPS = 8  # buckets for each doubling, so a quantile is at most 9% too high
_BUCKETS = 200  # up to 280 seconds


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Seconds, by the names in QUANTILES; None where nothing was recorded."""

    count: int
    whole: dict[str, float | None]
    series: dict[str, list[float | None]]  # SLOTS of each, the oldest first; the last is not over yet


class Recent:
    """A histogram for each of the last SLOTS times SLOT_SECONDS, with buckets in equal proportion."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts = np.zeros((SLOTS, _BUCKETS), np.int64)
        self._newest = int(clock() / SLOT_SECONDS)  # number of the slot that is filled now

    def add(self, seconds: float, count: int = 1) -> None:
        """Record `count` latencies of `seconds` each."""
        self._turn()
        bucket = math.ceil(_STEPS * math.log2(max(seconds, _FINEST) / _FINEST))
        self._counts[self._newest % SLOTS, min(bucket, _BUCKETS - 1)] += count

    def quantiles(self) -> Quantiles:
        """Of the whole time, and slot by slot."""
        self._turn()
        slots = np.roll(self._counts, -1 - self._newest % SLOTS, axis=0)
        whole = slots.sum(axis=0, keepdims=True)
        return Quantiles(
            count=int(whole.sum()),
            whole={name: _quantile(whole, share)[0] for name, share in QUANTILES.items()},
            series={name: _quantile(slots, share) for name, share in QUANTILES.items()},
        )

    def _turn(self) -> None:
        """Empty the slots whose time has come again."""
        now = int(self._clock() / SLOT_SECONDS)
        for slot in range(max(self._newest + 1, now - SLOTS + 1), now + 1):
            self._counts[slot % SLOTS] = 0
        self._newest = now


def _quantile(counts: Any, share: float) -> list[float | None]:
    """Of each row of `counts` [rows, _BUCKETS], the upper end of the bucket in which the quantile lies."""
    reached = counts.cumsum(axis=1)
    buckets = (reached >= np.maximum(1, np.ceil(share * reached[:, -1:]))).argmax(axis=1)
    return [
        _FINEST * 2 ** (int(bucket) / _STEPS) if total else None
        for bucket, total in zip(buckets, reached[:, -1], strict=True)
    ]
