"""The ladder itself, climbed once with its planted faults, and what makes it able to fail."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest

from parity_tests import (
    faults,
    faults_deepspeed,
    faults_enhancer,
    rungs_devices,
    rungs_discriminator,
    rungs_enhancer,
    rungs_model,
    rungs_precision,
    rungs_training,
    seeded,
    tolerances,
)
from parity_tests.ladder import BUNDLED_REFERENCE, Finding, Ladder, LadderOptions, run_ladder, rungs_of
from parity_tests.result import RUNGS, Report, Row, Skipped
from parity_tests.rungs_signal import distance, peak_error
from parivox.errors import ConfigError

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def report() -> Report:
    # An update in float64 on both backends is in tests/test_replay.py as well; whole trainings are long.
    return run_ladder(LadderOptions(long=False, float64_training=False))


def rows_of(report: Report, rung: str) -> list[Row]:
    return [row for row in report.rows if row.rung == rung]


@pytest.mark.parametrize("rung", list(RUNGS))
def test_rung_holds(report: Report, rung: str) -> None:
    rows = rows_of(report, rung)
    assert rows, f"no comparison on rung '{rung}'"
    outside = [
        f"{row.case} against {row.against}: {row.error:.2e} > {row.bound:.2e}"
        for row in rows
        if not row.passed
    ]
    assert not outside, "\n".join(outside)


def training_in_float64(ladder: Ladder) -> Iterator[Finding]:
    """The second goes on from the first."""
    yield from rungs_training.training_float64(ladder)
    yield from rungs_training.exchange_float64(ladder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "climb",
    [
        training_in_float64,
        rungs_precision.half,
        rungs_precision.accumulation,
        rungs_precision.bfloat16,
        rungs_devices.devices,
        rungs_discriminator.discriminator,
        rungs_enhancer.enhancer,
        rungs_enhancer.stages,
    ],
)
def test_long_rung_holds_to_its_end(climb) -> None:
    rows = list(climb(Ladder(LadderOptions())))
    assert rows and all(isinstance(row, Row) and row.passed for row in rows), rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [fault for fault in faults.all_faults() if fault.long], ids=lambda f: f.name
)
def test_long_fault_is_noticed(fault: faults.Fault) -> None:
    ladder = Ladder(LadderOptions(device="cpu"))
    rows = [faults.fault_row(ladder, fault, name) for name in fault.patches]
    assert all(row.passed for row in rows), rows


def test_nothing_is_left_out(report: Report) -> None:
    assert [skipped.reason for skipped in report.skipped] == []


@pytest.mark.parametrize("rung", ["features", "outputs", "gradients"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["jax", "torch"])
def test_both_proofs_are_made(report: Report, rung: str, dtype: str, name: str) -> None:
    recorded = [r for r in rows_of(report, rung) if r.against == "recorded float64" and r.dtype == dtype]
    assert any(row.case.endswith(name) for row in recorded)


def test_every_fault_is_planted_in_each_backend_that_can_have_it(report: Report) -> None:
    planted = [row.case for row in rows_of(report, "planted faults")]
    assert sorted(planted) == sorted(
        f"{fault.name}, {name}" for fault in faults.all_faults(long=False) for name in fault.patches
    )
    # Half precision on torch is DeepSpeed's own, which is what JAX is compared with.
    sides: dict[str, set[str]] = {}
    for fault in faults.all_faults():
        sides.setdefault(fault.name, set()).update(fault.patches)
    one_sided = {fault.probe for fault in faults.all_faults() if len(sides[fault.name]) == 1}
    assert one_sided == {faults_deepspeed.half_probe}
    missed = {fault.rung for fault in faults.all_faults()} ^ (set(RUNGS) - {"planted faults"})
    assert not missed, f"rungs without a planted fault: {missed}"


def test_measured_errors_lie_inside_their_bounds() -> None:
    for key, entry in tolerances.TABLE.items():
        assert entry.measured is None or entry.measured <= entry.bound, key


def test_a_fault_that_changes_nothing_goes_unnoticed_and_fails() -> None:
    nothing = faults.Fault("nothing", "settings", "float32", faults.settings_probe, {"torch": nullcontext})
    row = faults.fault_row(Ladder(LadderOptions(backends=("torch",))), nothing, "torch")
    assert not row.passed
    assert row.note == "NOT noticed"


def test_a_patch_is_taken_back() -> None:
    ladder = Ladder(LadderOptions(backends=("torch",)))
    before = rungs_model.small_pass(ladder, ladder.side("torch", "float64")).output
    fault = next(fault for fault in faults.FAULTS if fault.name == "tanh GELU")
    with fault.patches["torch"]():
        during = rungs_model.small_pass(ladder, ladder.side("torch", "float64")).output
    after = rungs_model.small_pass(ladder, ladder.side("torch", "float64")).output
    assert distance(during, before) > tolerances.bound("outputs", "float64")
    np.testing.assert_array_equal(after, before)


def test_nan_is_not_inside_any_bound() -> None:
    assert not Row("outputs", "x", "y", math.nan, 1.0).passed
    assert math.isnan(distance(np.array([math.nan]), np.ones(1)))
    assert math.isnan(peak_error(np.array([math.nan]), np.ones(1)))
    assert math.isnan(rungs_training.worst_loss(np.array([math.nan]), np.ones(1)))
    assert math.isnan(rungs_model.worst_norm({}, {"missing": 1.0}))


def test_absent_recordings_are_skipped_by_name(tmp_path) -> None:
    from parity_tests import rungs_signal

    ladder = Ladder(LadderOptions(backends=("torch",), reference=tmp_path))
    skipped = [found.reason for found in rungs_signal.features(ladder) if not isinstance(found, Row)]
    assert {reason.split()[0] for reason in skipped} == {
        "features.npz",
        "denoiser_stft.npz",
        "mix.npz",
        "merge.npz",
    }
    assert all(str(tmp_path) in reason for reason in skipped)


def test_absent_recordings_of_the_enhancer_are_skipped_by_name(tmp_path) -> None:
    ladder = Ladder(LadderOptions(backends=("torch",), reference=tmp_path))
    skipped = [*rungs_enhancer.enhancer(ladder), *rungs_enhancer.stages(ladder)]
    assert all(isinstance(found, Skipped) and str(tmp_path) in found.reason for found in skipped)
    (tmp_path / "enhancer_tiny.manifest.json").write_text('{"vocoder.conv_pre.bias": [16]}', encoding="utf-8")
    ladder = Ladder(LadderOptions(backends=("torch",), reference=tmp_path))
    absent = [*rungs_enhancer.missing_records(ladder, [case.record for case in rungs_enhancer.CASES])]
    assert absent == [f"{case.record}.npz" for case in rungs_enhancer.CASES]
    assert rungs_enhancer.missing_stage(ladder, "stage1") == [
        "stage1_tiny.npz",
        "stage1_tiny.grads.json",
        "discriminator.manifest.json",
    ]


def test_a_quick_ladder_leaves_the_enhancer_out() -> None:
    options = LadderOptions(enhancer=False)
    assert not {rung.unit for rung in rungs_of(options)} & {"enhancer", "training stages", "discriminator"}
    names = {fault.name for fault in faults.all_faults(enhancer=False)}
    assert not names & {fault.name for fault in faults_enhancer.ENHANCER_FAULTS}


def test_a_missing_reference_folder_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Ladder(LadderOptions(reference=tmp_path / "absent"))


def test_another_seed_rebuilds_other_inputs() -> None:
    assert not np.array_equal(seeded.signal(20, 1, 2000), seeded.signal(21, 1, 2000))
    one, other = (seeded.tensor(seed, "a.weight", (3, 4)) for seed in (20, 21))
    assert not np.array_equal(one, other)
    assert BUNDLED_REFERENCE.is_dir()


def test_a_sound_low_precision_table_has_bounds() -> None:
    for precision in ("tf32", "bf16"):
        for rung in ("features peak", "outputs", "gradients", "training", "checkpoint exchange"):
            assert tolerances.bound(rung, precision) > tolerances.bound(rung, "float32")
