"""Reading a compiled program's text (optimised HLO): what it sends between devices, its loops, its cycles, its faults.

XLA prints one instruction on a line: `%name = type opcode(%operand, ...), attribute=value, ...`, inside computations
that begin with a header and end with `}`; the one marked ENTRY is run. The text is that of one device of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

COLLECTIVES = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
"""What devices exchange numbers with; the names are XLA's."""

HOST = ("infeed", "outfeed", "send", "recv")
"""Opcodes that wait for the host; a custom call of a callback does too."""

WIDTHS = {"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
WIDTHS |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
"""Bytes of a number; small floats that are not listed have one."""

_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_DOUBLE = re.compile(r"\b(?:f64|c128)\[")
_CALLBACK = re.compile(r'custom_call_target="[^"]*(?:callback|[Hh]ost)[^"]*"')


@dataclass(frozen=True)
class Instruction:
    """One line of a program: name, type as printed, opcode, names of its operands, and the whole line."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    line: str


@dataclass(frozen=True)
class Collective:
    """All of one kind that a program makes of each step.

    Attributes:
        kind: one of `COLLECTIVES`.
        count: how many, those in a loop as often as it runs.
        bytes: of the whole arrays (what a sum is of, what is gathered, what is yet to be scattered), on each device.
    """

    kind: str
    count: int
    bytes: int


@dataclass
class Program:
    """What a text says.

    Attributes:
        collectives: by kind, those with most bytes first.
        cycles: the compiler's own estimate of every instruction that has one, added up; 0 where it says nothing.
        loops: times that each loop runs, in the order of the text; None where the text does not say (and it then
            counts once).
        float64: lines with numbers in double precision.
        host: lines that wait for the host.
    """

    collectives: list[Collective] = field(default_factory=list)
    cycles: int = 0
    loops: list[int | None] = field(default_factory=list)
    float64: list[str] = field(default_factory=list)
    host: list[str] = field(default_factory=list)


def read_program(text: str) -> Program:
    """What a compiled program does, from its text.

    Raises:
        ValueError: the text has no ENTRY.
    """
    entry, computations = _computations(text)
    found, totals = Program(), {}

    def visit(name: str, times: int, fused: bool) -> None:
        types = {instruction.name: instruction.type for instruction in computations.get(name, ())}
        for one in computations.get(name, ()):
            if _DOUBLE.search(one.type):
                found.float64.append(one.line)
            if one.opcode in HOST or (one.opcode == "custom-call" and _CALLBACK.search(one.line)):
                found.host.append(one.line)
            kind = _kind(one, name)
            if kind:
                count, size = totals.get(kind, (0, 0))
                totals[kind] = (count + times, size + times * _exchanged(one, types))
            cycles = None if fused else _CYCLES.search(one.line)
            found.cycles += times * int(cycles[1]) if cycles else 0
            often = times
            if one.opcode == "while":
                trips = _TRIPS.search(one.line)
                found.loops.append(int(trips[1]) if trips else None)
                often = times * (int(trips[1]) if trips else 1)
            # A sum's own addition is called once a number; it holds nothing of interest.
            if one.opcode in ("reduce", "reduce-window", "sort", "scatter", "map") or kind:
                continue
            for called in _called(one):
                visit(called, often, fused or one.opcode == "fusion")

    visit(entry, 1, False)
    made = [Collective(kind, count, size) for kind, (count, size) in totals.items()]
    found.collectives = sorted(made, key=lambda one: (-one.bytes, one.kind))
    return found


def shape_bytes(type: str) -> int:
    """Bytes of a type as printed, such as `f32[24,8]{1,0:T(8,128)}` or a tuple of these, without padding."""
    total = 0
    for kind, sizes in _SHAPE.findall(type):
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count * WIDTHS.get(kind, 0 if kind == "token" else 1)
    return total


def _computations(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    entry, current, found = "", "", {}
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header[2]
            found[current] = []
            entry = current if header[1] else entry
        elif current and (match := _INSTRUCTION.match(line)):
            found[current] += _instruction(match[1], match[2], line)
    if not entry:
        raise ValueError("this is no optimised HLO: nothing in it is marked ENTRY")
    return entry, found


def _instruction(name: str, rest: str, line: str) -> Iterator[Instruction]:
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest, end)
    if opcode:
        begin = opcode.end() - 1
        operands = tuple(_OPERAND.findall(rest[begin : begin + _closing(rest[begin:])]))
        yield Instruction(name, rest[:end], opcode[1], operands, line.strip())


def _closing(text: str) -> int:
    """Where the first bracket of a text is closed, one behind it."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _called(one: Instruction) -> list[str]:
    branches = _BRANCHES.search(one.line)
    return _CALLED.findall(one.line) + (_OPERAND.findall(branches[1]) if branches else [])


def _kind(one: Instruction, computation: str) -> str | None:
    kind = one.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    # A TPU's compiler writes a scattered sum as a fusion of a sum and a slice, and calls it so.
    return "reduce-scatter" if kind == "all-reduce" and "reduce-scatter" in computation else kind


def _exchanged(one: Instruction, types: dict[str, str]) -> int:
    given = sum(shape_bytes(types.get(name, "")) for name in one.operands)
    made = shape_bytes(one.type)
    # What begins a gathering comes back with its operands beside the result.
    return max(given, made - given if one.opcode.endswith("-start") else made)
