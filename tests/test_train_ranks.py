"""Training on many devices and processes equals the same on one; the runs are those of the rung "devices"."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity_tests import rungs_devices
from parity_tests.faults_deepspeed import PLAIN_SGD
from parity_tests.rank_run import PARTS
from parity_tests.result import Row
from parity_tests.rungs_devices import Outcome, Run, jax_rows, make
from parity_tests.rungs_model import worst_leaf
from parity_tests.rungs_training import worst_loss
from parity_tests.tolerances import bound

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


@pytest.mark.slow
def test_devices_of_jax_are_as_one():
    runs = [Run(3, 8, updates=FEW)]  # the ladder's own case, with what each device holds
    wanted, *found = make("jax", [Run(0, 1, updates=FEW), *runs])
    compared("jax", runs, found, wanted)


@pytest.mark.slow
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


def both_ways(name: str, runs: list[Run]) -> list[Outcome]:
    """Runs on two devices: of one process on JAX, of two on PyTorch."""
    return make("jax", runs) if name == "jax" else make("torch", runs, 2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("name", ["jax", "torch"])
def test_a_batch_that_is_not_finite_on_one_device_changes_none(name, stage):
    run = Run(stage, 2, updates=3, weigh=False)
    before, after = both_ways(name, [run, replace(run, updates=4, fault="last is NaN")])
    assert before.finite and not after.finite
    assert np.isnan(after.losses[-1]) and np.isfinite(after.losses[:-1]).all()
    assert all(np.array_equal(after.weights[key], before.weights[key]) for key in before.weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "torch"])
@pytest.mark.parametrize("stage", [0, 2])
def test_bfloat16_on_two_devices_is_as_on_one(name, stage):
    # Adam would hide a factor on the gradient, whose norm bfloat16 leaves no digits to compare.
    entries = {**PLAIN_SGD, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True}
    run = Run(stage, 2, updates=FEW, entries=entries, weigh=False)
    limit = bound("devices", "bf16 master weights")
    (one,) = make(name, [replace(run, devices=1)])
    for fault in (None, "sum"):
        (many,) = both_ways(name, [replace(run, fault=fault)])
        error = worst_loss(many.losses, one.losses)
        print(
            f"{name}, ZeRO {stage}, fault {fault}: {error:.1e}, norms {worst_loss(many.norms, one.norms):.1e}"
        )
        assert many.finite and (error <= limit) == (fault is None)


@pytest.mark.slow
def test_checkpointed_activations_on_two_devices_change_no_number():
    plain = Run(2, 2, updates=FEW, weigh=False)
    entries = {"activation_checkpointing": {"partition_activations": False}}
    wanted, found = make("jax", [plain, replace(plain, entries=entries)])
    error = max(worst_loss(found.losses, wanted.losses), worst_leaf(found.weights, wanted.weights))
    assert error <= bound("training", "float32")
