"""Training on many devices and processes equals the same on one; the runs are those of the rung "devices"."""

from __future__ import annotations

import pytest

from parity_tests import rungs_devices
from parity_tests.rank_run import PARTS
from parity_tests.result import Row
from parity_tests.rungs_devices import Outcome, Run, jax_rows, make

STAGES = (0, 1, 2, 3)
FEW = 6
"""Updates where the whole matrix is not asked for."""

SLACK = 1.1
"""A device holds at most so many times its share: eight cannot share each of the narrow model's tensors evenly."""


def assert_inside(rows: list[Row]) -> None:
    for row in rows:
        print(f"{row.case} against {row.against}: {row.error:.1e} ({row.note})")
    assert rows and all(row.passed for row in rows)


def assert_divided(run: Run, devices: int, held: dict[str, int], whole: dict[str, int], name: str) -> None:
    """What a device holds is what ZeRO's stage leaves it."""
    # DeepSpeed drops what is not its own after the sum, at stage 1 too; and updates a float32 copy of its part.
    first = {"parameters": 3, "gradients": 1 if name == "torch" else 2, "optimizer": 1}
    for part in PARTS:
        size = whole[part]
        if name == "torch" and part == "optimizer" and run.stage:
            size += whole["parameters"]
        share = size / devices if run.stage >= first[part] else size
        assert share <= held[part] <= SLACK * share, (name, run, part, held[part], share)


def compared(name: str, runs: list[Run], found: list[Outcome], wanted: Outcome, devices: int = 0) -> None:
    rows = [rungs_devices.row(name, "many", run, one, wanted) for run, one in zip(runs, found, strict=True)]
    assert_inside(rows)
    assert wanted.held is not None
    for run, one in zip(runs, found, strict=True):
        assert one.held is not None
        assert_divided(run, devices or run.devices, one.held, wanted.held, name)


def test_devices_of_jax_are_as_one():
    runs = [Run(3, 8, updates=FEW)]  # each one more compiles for half a minute
    wanted, *found = make("jax", [Run(0, 1, updates=FEW), *runs])
    compared("jax", runs, found, wanted)


def test_two_ranks_of_torch_are_as_one():
    pytest.importorskip("deepspeed")
    # The ladder has stages 1 and 3.
    runs = [Run(stage, updates=FEW) for stage in (0, 2)] + [Run(1, updates=FEW, passes=2)]
    (wanted,) = make("torch", [Run(updates=FEW)])
    compared("torch", runs, make("torch", runs, 2), wanted, devices=2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("devices", [2, 8])
def test_fifty_updates_of_jax_at_every_stage(devices):
    runs = [Run(stage, devices) for stage in STAGES] + [Run(1, 2, passes=2)]
    wanted, *found = make("jax", [Run(0, 1), *runs])
    compared("jax", runs, found, wanted)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_updates_of_two_jax_processes():
    runs = [Run(stage) for stage in (0, 3)]
    (wanted,) = make("jax", [Run(devices=1)])
    compared("jax", runs, make("jax", runs, 2), wanted, devices=2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_updates_of_two_torch_ranks_at_every_stage():
    pytest.importorskip("deepspeed")
    runs = [Run(stage) for stage in STAGES] + [Run(2, passes=2)]
    (wanted,) = make("torch", [Run()])
    compared("torch", runs, make("torch", runs, 2), wanted, devices=2)


@pytest.mark.slow
def test_float64_on_eight_devices_of_jax():
    assert_inside(list(jax_rows([Run(3, 8, updates=FEW, dtype="float64")])))
