"""Recent latencies against numpy's quantiles of all that was recorded."""

import random

import numpy as np

from radixmesh.engine.server.recent import QUANTILES, SLOT_SECONDS, SLOTS, Recent


class Clock:
    now = 12_345.6

    def __call__(self) -> float:
        return self.now


def near(got: float | None, values: list[float], share: float) -> bool:
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    return got is not None and exact * 0.999 <= got <= exact * 1.091


def test_quantiles_are_those_of_the_last_two_minutes() -> None:
    rng, clock = random.Random(1), Clock()
    recent = Recent(clock)
    records: list[tuple[int, float]] = []
    for _ in range(5000):
        clock.now += rng.random() * 0.1
        value = rng.lognormvariate(-4, 1.5)
        recent.add(value)
        records.append((int(clock.now / SLOT_SECONDS), value))
    newest = int(clock.now / SLOT_SECONDS)
    kept = [value for slot, value in records if slot > newest - SLOTS]
    got = recent.quantiles()
    assert got.count == len(kept) < len(records)
    for name, share in QUANTILES.items():
        assert near(got.whole[name], kept, share)
        for index, slot_value in enumerate(got.series[name]):
            mine = [each for slot, each in records if slot == newest - SLOTS + 1 + index]
            assert near(slot_value, mine, share) if mine else slot_value is None


def test_silence_empties_it() -> None:
    clock = Clock()
    recent = Recent(clock)
    recent.add(0.1, 3)
    assert recent.quantiles().count == 3
    clock.now += SLOT_SECONDS * (SLOTS - 1)
    assert recent.quantiles().series["p50"][0] is not None
    clock.now += SLOT_SECONDS
    got = recent.quantiles()
    assert got.count == 0 and got.whole == dict.fromkeys(QUANTILES)
    assert set(got.series["p99"]) == {None}
    clock.now += 1e6
    recent.add(0.1)
    assert recent.quantiles().count == 1


def test_extremes_have_a_bucket() -> None:
    recent = Recent(Clock())
    recent.add(0.0)
    recent.add(1e9)
    assert recent.quantiles().count == 2
