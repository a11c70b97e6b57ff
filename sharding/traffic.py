"""The bytes that a compiled program moves to and from HBM, and its floating point operations.

XLA's own cost analysis counts a loop's body once and copies within the chip like any other. Here each
instruction is charged for what it reads from HBM and writes to it, as often as it runs, by the shapes and
memory spaces that the compiler chose. A fusion that slices an operand reads the slice; an update in
place moves the update; a kernel moves what its own cost estimate says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

from .collectives import KINDS
from .hlo import Array, Computation, Instruction, Program

_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call",
         "after-all", "partition-id", "replica-id", "opt-barrier", "iota", "custom-call"}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is the update
_SAME_BYTES = {"bitcast", "reshape", "copy"}
_COST = re.compile(r'"cost_estimate":(\{[^}]*\})')


def hbm_bytes(program: Program) -> float:
    """Bytes read from HBM and written to it by one run of the program on one device.

    Of a conditional the shortest branch counts: what else there is, not every run does.
    """
    return sum(
        times * _moved(program, program.computations[name], instruction)
        for name, times in program.times_run(fusions=False).items()
        for instruction in program.computations[name].values()
    )


def _moved(program: Program, around: Computation, instruction: Instruction) -> float:
    opcode = instruction.opcode
    if opcode == "custom-call" and (match := _COST.search(instruction.attributes)):
        return float(json.loads(match[1])["bytes_accessed"])
    if opcode in _FREE or opcode.endswith("-done") or opcode.startswith("async-"):
        return 0
    if opcode.endswith("-start"):
        return _started(around, instruction)
    if opcode == "fusion":
        return _fusion(program, around, instruction)
    if opcode in _SLICES:
        return 2 * _hbm(instruction.arrays)
    if opcode in _UPDATES:
        return 2 * _hbm(around[instruction.operands[_UPDATES[opcode]]].arrays)
    return _hbm(instruction.arrays) + sum(_hbm(around[name].arrays) for name in instruction.operands)


def _started(around: Computation, instruction: Instruction) -> float:
    """A copy in the background reads and writes; of a transfer between devices only the operands count."""
    if instruction.opcode.removesuffix("-start") in KINDS:
        return 2 * sum(_hbm(around[name].arrays) for name in instruction.operands)
    to, source = instruction.arrays[:2]
    return _hbm([to]) + (to.bytes if source.in_hbm else 0)


def _fusion(program: Program, around: Computation, fusion: Instruction) -> float:
    inside = program.computations[dict(fusion.called)["calls"]]
    read = sum(
        min(_hbm(around[name].arrays), _used(program, inside, _parameter(inside, index)))
        for index, name in enumerate(fusion.operands)
    )
    return read + _written(inside, fusion)


def _parameter(inside: Computation, index: int) -> str:
    return next(
        each.name for each in inside.values() if each.opcode == "parameter" and each.text == str(index)
    )


def _used(program: Program, inside: Computation, name: str, of_result: float = math.inf) -> float:
    """Bytes of a fused computation's value that its users read, when `of_result` bytes of the fusion's own
    result are read."""
    total = 0.0
    for user in inside.values():
        for position, operand in enumerate(user.operands):
            if operand != name:
                continue
            if user.opcode == "fusion":
                nested = program.computations[dict(user.called)["calls"]]
                of_nested = _used(program, inside, user.name, of_result)
                total += _used(program, nested, _parameter(nested, position), of_nested)
            elif user.opcode in _SLICES and position == 0:
                total += sum(array.bytes for array in user.arrays)
            elif user.opcode in _SAME_BYTES:
                total += _used(program, inside, user.name, of_result)
            elif user.opcode not in _UPDATES or position > 0:
                total += sum(array.bytes for array in inside[name].arrays)
    if inside[name].root:
        total += min(of_result, sum(array.bytes for array in inside[name].arrays))
    return total


def _written(inside: Computation, fusion: Instruction) -> float:
    """Bytes of the result that go to HBM; of a result updated in place, the update."""
    root = next(each for each in inside.values() if each.root)
    parts = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0.0
    for array, part in zip(fusion.arrays, parts, strict=False):
        while part.opcode in ("bitcast", "reshape"):
            part = inside[part.operands[0]]
        if part.opcode in _UPDATES:
            total += min(
                _hbm([array]), sum(a.bytes for a in inside[part.operands[_UPDATES[part.opcode]]].arrays)
            )
        else:
            total += _hbm([array])
    return total


def _hbm(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if array.in_hbm)
