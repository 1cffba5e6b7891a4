"""Three loss curves: how far one may lie from the float64 one, measured by another."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from parity_tests.curves import curves
from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams

UPDATES = 60


def run(folder, name, losses, **fields):
    place = folder / name
    place.mkdir(exist_ok=True)
    DenoiserHParams(**fields).save(place / "hparams.yaml")
    lines = [{"step": k + 1, "event": "train", "loss": loss} for k, loss in enumerate(losses)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


@pytest.fixture
def runs(tmp_path):
    """A float64 curve, one that leaves it by a factor of ten in ten updates, and one that does so later."""
    true = 0.1 + 0.01 * np.sin(np.arange(UPDATES))
    away = 1e-7 * 10 ** (np.arange(UPDATES) / 10)
    return (
        run(tmp_path, "jax", true * (1 - 0.5 * away)),
        run(tmp_path, "torch", true * (1 + away)),
        run(tmp_path, "truth", true),
    )


def test_a_curve_nearer_than_the_other_passes(runs):
    rows = curves(*runs)
    assert [row.case for row in rows] == [f"updates 1 to {k}, jax" for k in (25, 50, 60)]
    assert all(row.passed for row in rows)
    assert rows[-1].error == pytest.approx(0.5, rel=1e-3)


def test_what_lies_three_times_as_far_fails(runs, tmp_path):
    true = 0.1 + 0.01 * np.sin(np.arange(UPDATES))
    away = 3e-7 * 10 ** (np.arange(UPDATES) / 10)
    rows = curves(run(tmp_path, "jax", true * (1 + away)), *runs[1:])
    # Below 1e-4 it may lie anywhere.
    assert rows[0].passed and not rows[-1].passed
    assert rows[-1].error == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("step", [0, 30])
def test_one_update_far_away_early_fails(runs, tmp_path, step):
    true = 0.1 + 0.01 * np.sin(np.arange(UPDATES))
    true[step] *= 1.001
    assert not curves(run(tmp_path, "jax", true), *runs[1:])[-1].passed


def test_nan_does_not_pass(runs, tmp_path):
    true = 0.1 + 0.01 * np.sin(np.arange(UPDATES))
    true[40] = math.nan
    place = run(tmp_path, "jax", true)
    text = (place / "metrics.jsonl").read_text().replace("NaN", '"NaN"')
    (place / "metrics.jsonl").write_text(text)
    rows = curves(place, *runs[1:])
    assert [row.passed for row in rows] == [True, False, False]


def test_other_runs_are_refused(runs, tmp_path):
    short = run(tmp_path, "short", [0.1] * 20)
    with pytest.raises(ConfigError, match="only one has update 21"):
        curves(short, *runs[1:])
    other = run(tmp_path, "other", [0.1] * UPDATES, max_lr=1e-3)
    with pytest.raises(ConfigError, match="max_lr"):
        curves(other, *runs[1:])
