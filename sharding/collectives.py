"""What a compiled program moves between devices."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from .hlo import Instruction, Program

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")


@dataclass(frozen=True, order=True)
class Collective:
    """Transfers of one kind and size. `bytes` is what each device holds of the result (reduce-scatter: of
    the operand); `count` says how often a run of the program makes it. Those that are not made `always` are
    in the longer branches of conditionals, as if all of them ran."""

    kind: str
    group_size: int  # devices that take part in one; 0 where the compiler does not say
    bytes: int
    count: int
    always: bool = True

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends for one of them, with a ring over its group."""
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * (self.group_size - 1) / self.group_size * (2 if self.kind == "all-reduce" else 1)

    @property
    def hops(self) -> int:
        """Steps of that ring."""
        if self.kind == "collective-permute":
            return 1
        return (self.group_size - 1) * (2 if self.kind == "all-reduce" else 1)


def read_collectives(program: Program) -> tuple[Collective, ...]:
    """Every transfer between devices, the largest first."""
    always, ever = (_count(program, every_branch) for every_branch in (False, True))
    found = [Collective(*key, count) for key, count in always.items()]
    found += [Collective(*key, count, always=False) for key, count in (ever - always).items()]
    return tuple(sorted(found, key=lambda each: (not each.always, -each.bytes * each.count, each)))


def _count(program: Program, every_branch: bool) -> Counter[tuple[str, int, int]]:
    """How often there is a transfer of each kind, group size and size."""
    found: Counter[tuple[str, int, int]] = Counter()
    for name, times in program.times_run(every_branch).items():
        for each in program.computations[name].values():
            kind = each.opcode.removesuffix("-start")
            if kind in KINDS and (group := _group_size(each)) != 1:
                found[kind, group, _bytes(each, kind, group)] += times
    return found


def _group_size(instruction: Instruction) -> int:
    if match := _IOTA_GROUPS.search(instruction.attributes):
        return int(match[1])
    if match := _LISTED_GROUPS.search(instruction.attributes):
        return match[1].count(",") + 1
    return 0


def _bytes(instruction: Instruction, kind: str, group: int) -> int:
    """What a device holds of the result. That of a started transfer lists its operands too."""
    sizes = [array.bytes for array in instruction.arrays]
    if instruction.opcode == "all-gather-start":
        sizes = sizes[len(sizes) // 2 :]
    elif instruction.opcode == "collective-permute-start":
        sizes = sizes[:1]
    return sum(sizes) * (group if kind == "reduce-scatter" else 1)
