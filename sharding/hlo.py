"""A compiled program as the compiler's own text (optimised HLO) tells it, and how often its parts run.

Only names, shapes and the call graph are read, which XLA has kept stable for years. A loop's body counts
as often as it runs, where that is known before it runs, and else once.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
         "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LISTS = re.compile(r"\b(branch|called)_computations=\{([^}]*)\}")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Array:
    """An array, or a part of a tuple, as an instruction's type tells it."""

    bytes: int
    in_hbm: bool  # in the device's main memory, not in one of those on the chip


@dataclass(frozen=True)
class Instruction:
    """One instruction: `attributes` is the text after its operands."""

    name: str
    arrays: tuple[Array, ...]  # of its result
    opcode: str
    operands: tuple[str, ...]
    text: str  # between the parentheses
    attributes: str
    root: bool

    @cached_property
    def called(self) -> tuple[tuple[str, str], ...]:
        """(role, computation) of each computation that it calls; the role "branch" for those of which one
        runs."""
        named = [
            ("branch" if role.endswith("e_computation") else role, name)
            for role, name in _CALLED.findall(self.attributes)
        ]
        listed = [
            (role, name)
            for role, names in _CALLED_LISTS.findall(self.attributes)
            for name in _NAME.findall(names)
        ]
        return (*named, *listed)


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Program:
    """The computations of a module by name."""

    computations: dict[str, Computation]
    entry: str

    @staticmethod
    def parse(text: str) -> Program:
        """Read the text of an optimised HLO module."""
        computations: dict[str, Computation] = {}
        entry, inside = "", {}
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                inside = computations[match[2]] = {}
                entry = match[2] if match[1] else entry
            elif match := _INSTRUCTION.match(line):
                inside[match[1]] = _instruction(match[1], match[2], line.lstrip().startswith("ROOT "))
        return Program(computations, entry)

    def times_run(self, every_branch: bool = False, fusions: bool = True) -> dict[str, int]:
        """How often each computation runs in one run of the program; without `fusions`, what is inside of
        one is left out.

        Of a conditional the shortest branch is taken to run, or else every one.
        """
        times: defaultdict[str, int] = defaultdict(int)

        def visit(name: str, factor: int) -> None:
            times[name] += factor
            for instruction in self.computations[name].values():
                if instruction.opcode == "fusion" and not fusions:
                    continue
                branches = [target for role, target in instruction.called if role == "branch"]
                if branches and not every_branch:
                    branches = [min(branches, key=self._length)]
                for target in branches:
                    visit(target, factor)
                for role, target in instruction.called:
                    if role in ("body", "condition", "calls", "called"):
                        visit(target, factor * (self._trips(instruction) if role == "body" else 1))
                    elif role == "to_apply" and instruction.opcode == "call":
                        visit(target, factor)

        visit(self.entry, 1)
        return times

    def _length(self, name: str) -> int:
        """Instructions of a computation and of those it calls."""
        inside = self.computations[name].values()
        return len(inside) + sum(self._length(target) for each in inside for _, target in each.called)

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as the compiler notes at it, or the constant that it counts up to from 0."""
        if match := _KNOWN_TRIPS.search(loop.attributes):
            return int(match[1])
        condition = self.computations[dict(loop.called)["condition"]].values()
        bounds = [int(each.text) for each in condition if each.opcode == "constant" and each.text.isdigit()]
        counts_up = any("direction=LT" in each.attributes for each in condition if each.opcode == "compare")
        return bounds[0] if counts_up and len(bounds) == 1 else 1


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    """`rest` is "type opcode(operands), attributes"."""
    at = _end_of_parentheses(rest, 0) if rest.startswith("(") else rest.index(" ")
    arrays, (opcode, _, after) = rest[:at], rest[at:].strip().partition("(")
    end = _end_of_parentheses("(" + after, 0) - 2
    inside = after[:end]
    return Instruction(
        name, _arrays(arrays), opcode, tuple(_NAME.findall(inside)), inside, after[end + 1 :], root
    )


def _end_of_parentheses(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at + 1
    return len(text)


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        # the many float8 types have 8 bits; a layout names the memory space when it is not the main one
        Array(
            math.prod(int(each) for each in dims.split(",") if each) * _BITS.get(dtype, 8) // 8,
            "S(" not in layout,
        )
        for dtype, dims, layout in _ARRAY.findall(text)
    )
