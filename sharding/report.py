"""What lies where: each array of a model or pool, how it is split, and its bytes on one device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Placement:
    """One array on a mesh. `split` names the mesh axis of each array axis, None where it is whole."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    split: tuple[str | None, ...]
    device_shape: tuple[int, ...]  # what one device holds
    device_bytes: int


def placements(arrays: Mapping[str, Any]) -> tuple[Placement, ...]:
    """Where each of `arrays` lies: jax arrays or `jax.ShapeDtypeStruct`s with a NamedSharding."""
    return tuple(_placement(name, array) for name, array in arrays.items())


def device_bytes(arrays: Iterable[Any]) -> int:
    """Bytes that all `arrays` together take on one device."""
    return sum(_placement("", array).device_bytes for array in arrays)


def format_placements(placed: Iterable[Placement]) -> str:
    """A table for people, the sum in the last line."""
    placed = tuple(placed)
    rows = [("name", "shape", "dtype", "split", "on a device", "MiB")]
    rows += [
        (
            each.name, _sizes(each.shape), each.dtype, ", ".join(axis or "-" for axis in each.split),
            _sizes(each.device_shape), _mib(each.device_bytes),
        )
        for each in placed
    ]  # fmt: skip
    rows.append(("sum", "", "", "", "", _mib(sum(each.device_bytes for each in placed))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at == len(row) - 1 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _placement(name: str, array: Any) -> Placement:
    spec = tuple(array.sharding.spec)
    shape = array.sharding.shard_shape(array.shape)
    return Placement(
        name=name,
        shape=tuple(array.shape),
        dtype=str(array.dtype),
        split=spec + (None,) * (len(array.shape) - len(spec)),
        device_shape=shape,
        device_bytes=math.prod(shape) * array.dtype.itemsize,
    )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f}"
