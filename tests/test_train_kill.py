"""Runs that are killed at random moments and started again end as if nothing had happened."""

from __future__ import annotations

import secrets
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from parivox.runlog import read_metrics
from tests.train_folder import (
    ROOT,
    curve,
    newest,
    process_command,
    process_environment,
    small_hparams,
    unequal,
)

STEPS = {1: 20, 10: 60}
"""Of a run that is killed so often."""

EARLY = 0.2
"""Share of the kills that come before the first update of their process is logged."""

LATE_STEPS = 5.0
"""A later kill comes within the time of so many updates."""

EARLY_SECONDS = 3.0


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            command, cwd=ROOT, env=process_environment(), stdout=out, stderr=subprocess.STDOUT
        )


def finish(command: list[str], log: Path) -> None:
    assert start(command, log).wait(timeout=600) == 0, log.read_text()


def wait_for_update(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the process has logged its first update."""
    while "\nstep " not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)


def kill_once(command: list[str], log: Path, seconds: float, *, early: bool) -> None:
    """Start the command and kill it after a while; fails when it had ended by itself."""
    process = start(command, log)
    try:
        if not early:
            wait_for_update(process, log)
        time.sleep(seconds)
        assert process.poll() is None, f"ended before the kill: {log.read_text()}"
    finally:
        process.kill()
        status = process.wait()
    assert status == -signal.SIGKILL


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_kills_change_nothing(tmp_path, backend, kills):
    steps = STEPS[kills]
    small_hparams(tmp_path / "data")
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    finish(process_command(tmp_path / "data", whole, backend, steps), log)
    update = float(np.median([line["seconds"] for line in read_metrics(whole, "train")]))
    seed = secrets.randbits(64)
    rng = np.random.default_rng(seed)
    early = set(rng.choice(kills, round(EARLY * kills), replace=False).tolist())
    print(f"seed {seed}, {update:.3f} s an update, kills before the first update: {early}")
    command = process_command(tmp_path / "data", broken, backend, steps)
    for kill in range(kills):
        seconds = rng.uniform(0, EARLY_SECONDS if kill in early else LATE_STEPS * update)
        print(f"kill {kill} after {seconds:.3f} s")
        kill_once(command, log, seconds, early=kill in early)
    finish(command, log)
    assert newest(broken).step == steps
    assert unequal(newest(broken), newest(whole)) == []
    assert curve(broken) == curve(whole)
    assert [step for step, _ in curve(broken)] == list(range(1, steps + 1))


def test_terminated_process_ends_well_and_goes_on(tmp_path):
    hp = small_hparams(tmp_path / "data", max_steps=100_000)
    log = tmp_path / "log"
    process = start(process_command(tmp_path / "data", tmp_path / "run", "toy", hp.max_steps), log)
    try:
        wait_for_update(process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        process.kill()
    assert "stopped by SIGTERM at step" in log.read_text()
    stopped = newest(tmp_path / "run").step
    assert stopped == curve(tmp_path / "run")[-1][0]
    assert stopped > 0
