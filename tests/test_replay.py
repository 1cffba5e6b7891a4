"""A run replayed by the other backend from each of its checkpoints."""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest

from parity_tests import replay as module
from parity_tests.replay import replay
from parivox import cli
from parivox.backend import get_backend
from parivox.checkpoint import list_checkpoints
from parivox.errors import ConfigError
from parivox.runlog import METRICS
from tests.train_folder import small_hparams, train

STEPS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six updates of torch in float64, a checkpoint every two."""
    root = tmp_path_factory.mktemp("replay")
    hp = small_hparams(root / "data", max_steps=STEPS)
    with patch("parivox.evaluation.spectrogram_png"):
        backend = get_backend("torch", device="cpu", dtype="float64")
        train(root / "run", backend, hp, checkpoint_every=2, keep=10)
    return root / "run"


def test_every_update_is_compared(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    report = replay(run, device="cpu", say=lambda line: None)
    assert report.passed
    assert [row.case for row in report.rows] == [f"updates {k} to {k + 1}, jax" for k in (1, 3, 5)]
    assert all(row.against == "torch" and row.dtype == "float64" for row in report.rows)
    assert 0 < max(row.error for row in report.rows) < 1e-12
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_update_that_is_not_the_runs_fails(run):
    from torch_impl.schedule import update_schedule

    def early(config):
        rate = update_schedule(config)
        return lambda count: rate(count + 1)

    with patch("torch_impl.train_step.update_schedule", early):
        report = replay(run, "torch", "cpu", say=lambda line: None)
    # The first updates of two run at the lowest rate; from there on a rate too early shows.
    assert not report.passed


def test_the_command_ends_with_the_verdict(run, tmp_path, capsys):
    found = tmp_path / "found.json"
    words = ["parity", "--replay", str(run), "--backend", "torch", "--device", "cpu", "--json", str(found)]
    assert cli.main(words) == 0
    assert "updates 5 to 6, torch: 0.0e+00 from torch" in capsys.readouterr().out
    rows = json.loads(found.read_text())["rows"]
    assert [row["error"] for row in rows] == [0.0] * 3  # the same backend repeats its run to the last bit
    assert cli.main([*words[:3], "--backend", "both"]) == 1
    assert "--backend jax or torch" in capsys.readouterr().err


def test_what_cannot_be_replayed_is_named(run, tmp_path):
    with pytest.raises(ConfigError, match="checkpoints found: 0"):
        replay(tmp_path)
    lines = (run / METRICS).read_text().splitlines()
    torn = patch.object(module, "read_metrics", lambda folder, event: [json.loads(x) for x in lines[:3]])
    with torn, pytest.raises(ConfigError, match="no update 4"):
        replay(run, "torch", "cpu", say=lambda line: None)
    alone = patch.object(module, "list_checkpoints", lambda folder: list_checkpoints(folder)[:1])
    with alone, pytest.raises(ConfigError, match="--checkpoint-every"):
        replay(run)
