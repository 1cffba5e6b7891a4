"""TPU chips and the slices they come in, as far as `parivox plan` can describe them, and simulated CPU devices.

Memory and speed of a chip are those of Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (System
architecture); the slices are those that libtpu 0.0.52 describes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from parivox.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of TPU.

    Attributes:
        hbm: bytes of memory of a chip.
        flops: bfloat16 operations a second at most, of a chip.
        bandwidth: bytes a second between memory and chip.
        clock: cycles a second: `flops` divided by those of a cycle, in which each matrix unit multiplies and adds
            128 x 128 numbers; no page states it. None where the units' number and the speed do not fit together.
        cores: devices that JAX sees of a chip. A described v4 has two, of half the memory each; where JAX runs on one
            it joins them.
        slices: topologies.
    """

    hbm: int
    flops: float
    bandwidth: float
    clock: float | None
    cores: int
    slices: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
CHIPS: dict[str, Chip] = {
    "v4": Chip(32 * GIB, 275e12, 1228e9, 275e12 / (8 * 2 * 128**2), 2, _CUBES),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 197e12 / (4 * 2 * 128**2), 1, _FLAT),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 459e12 / (8 * 2 * 128**2), 1, (*_CUBES, "8x8x4", "8x8x8")),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, None, 1, _FLAT),
}
"""Kind -> what it can do. The two cores of a v5p are one device."""

MOST_CPUS = 64
"""Simulated CPU devices, at most."""


@dataclass(frozen=True)
class Topology:
    """Where a program is to run.

    Attributes:
        name: as it was asked for, such as `v5e:4x4` or `cpu:8`.
        kind: `v5e`, ..., or `cpu`.
        devices: what JAX sees.
    """

    name: str
    kind: str
    devices: int

    @property
    def chip(self) -> Chip | None:
        """What a chip can do; None of a CPU."""
        return CHIPS.get(self.kind)

    @property
    def chips(self) -> int:
        """Chips, or simulated devices."""
        return self.devices // (self.chip.cores if self.chip else 1)

    @property
    def memory(self) -> int | None:
        """Bytes of memory that each device has; None of a CPU, whose devices share the machine's."""
        return self.chip.hbm // self.chip.cores if self.chip else None


def parse_topology(text: str) -> Topology:
    """The topology of a name.

    Raises:
        ConfigError: unknown; lists those that are known.
    """
    kind, _, shape = text.partition(":")
    if kind == "cpu":
        if not shape.isdecimal() or not 1 <= int(shape) <= MOST_CPUS:
            raise ConfigError(
                f"--topology is '{text}'; cpu takes a number of devices, cpu:1 to cpu:{MOST_CPUS}"
            )
        return Topology(text, kind, int(shape))
    chip = CHIPS.get(kind)
    if chip is None or shape not in chip.slices:
        raise ConfigError(f"--topology is '{text}'; use one of {known_topologies()}")
    return Topology(text, kind, math.prod(map(int, shape.split("x"))) * chip.cores)


def known_topologies(kinds: Sequence[str] = tuple(CHIPS)) -> str:
    """Every topology there is, as a line."""
    listing = [f"{kind}:({'|'.join(CHIPS[kind].slices)})" for kind in kinds]
    return ", ".join([*listing, "cpu:N"])
