"""Runs of the enhancer's two stages: what each trains, what it leaves alone, restarts and changes of backend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import parivox.evaluation
from parity_tests.tolerances import bound
from parivox.backend import get_backend
from parivox.cli import main
from parivox.errors import ConfigError
from parivox.latent import two_digits
from parivox.runlog import read_metrics
from parivox.weights_enhancer import STATISTICS, TRAINED, initial_enhancer
from tests.enhancer_folder import GAN_START, STEPS, stage1_hparams, stage2_hparams, train, unequal_runs
from tests.test_train_exchange import distance
from tests.train_folder import ROOT, newest, process_environment

BOTH = [pytest.param("torch"), pytest.param("jax", marks=pytest.mark.slow)]
"""JAX compiles four programs for this, which takes minutes."""

GAN_LOSSES = {"g_mpd", "g_mrd", "d_mpd_fake", "d_mpd_real", "d_mrd_fake", "d_mrd_real"}


@pytest.fixture(autouse=True, scope="module")
def without_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parivox.evaluation, "spectrogram_png", lambda panels, rate, path: None)
        yield


@pytest.fixture(scope="module", params=BOTH)
def runs(request, tmp_path_factory):
    """A whole run of each stage, and one of each with stops on the way."""
    root, backend = tmp_path_factory.mktemp("stages"), get_backend(request.param, device="cpu")
    hp = stage1_hparams(root / "data")
    train(root / "one", backend, hp)
    for stop in (1, 3, STEPS):
        train(root / "one-stopped", backend, hp, stop_at=stop)
    hp = stage2_hparams(root / "data", root / "one")
    train(root / "two", backend, hp)
    for stop in (1, STEPS):
        train(root / "two-stopped", backend, hp, stop_at=stop)
    return root


@pytest.mark.parametrize("stage", ["one", "two"])
def test_a_restart_changes_no_bit(runs, stage):
    assert unequal_runs(newest(runs / f"{stage}-stopped"), newest(runs / stage)) == []
    whole, stopped = (read_metrics(runs / name, "train") for name in (stage, f"{stage}-stopped"))
    unlike = {"seconds", "data_wait", "audio_per_second"}
    assert [{k: v for k, v in line.items() if k not in unlike} for line in whole] == [
        {k: v for k, v in line.items() if k not in unlike} for line in stopped
    ]


def test_the_discriminator_joins_when_it_is_to(runs):
    lines = read_metrics(runs / "one", "train")
    for line in lines:
        assert {"mse", "sc", "mag", "latent_std"} <= line.keys()
        assert (line.keys() >= GAN_LOSSES) == (line["step"] > GAN_START) == ("score_real" in line)
    judge = newest(runs / "one").discriminator
    assert judge is not None and judge.step == STEPS - GAN_START
    assert lines[-1]["loss"] == pytest.approx(
        sum(lines[-1][name] for name in ("mse", "sc", "mag", "g_mpd", "g_mrd")), rel=1e-5
    )
    # It begins at the lowest rate when it joins, whatever the model's rate is by then.
    assert lines[GAN_START]["d_lr"] == lines[0]["lr"] < lines[GAN_START]["lr"]


@pytest.mark.parametrize(("stage", "mode"), [("one", "ae"), ("two", "cfm")])
def test_a_stage_trains_its_own_part_alone(runs, stage, mode):
    hp = stage1_hparams(runs / "data")
    begin = initial_enhancer(0, hp)
    if stage == "two":
        first = newest(runs / "one").weights
        begin |= {name: array for name, array in first.items() if not name.startswith("lcfm.cfm.")}
    end = newest(runs / stage)
    assert end.weights.keys() == begin.keys()
    changed = {name for name in begin if end.weights[name].tobytes() != begin[name].tobytes()}
    own = {name for name in begin if name.startswith(TRAINED[mode]) and name not in STATISTICS}
    assert changed <= own | (set(STATISTICS) if mode == "ae" else set())
    assert len(changed) > 0.9 * len(own)
    assert (set(STATISTICS) <= changed) == (mode == "ae")
    assert end.exp_avg.keys() == end.exp_avg_sq.keys() == own


def test_stage_two_remembers_where_it_began(runs):
    from parivox.checkpoint import latest_checkpoint

    found = latest_checkpoint(runs / "two")
    assert found is not None
    assert found.meta.extra["origin"] == {"enhancer_stage1": {"folder": str(runs / "one"), "step": STEPS}}
    summary = json.loads((runs / "two" / "summary.json").read_text())
    assert {"cfm_l1", "denoiser_l1", "lsd_sample", "lsd_reconstruction", "si_sdr_gain"} <= summary[
        "evaluation"
    ].keys()
    assert sorted(p.name for p in (runs / "two" / "eval" / f"step-{STEPS:08d}").glob("0-*")) == [
        f"0-{name}.wav" for name in ("denoised", "noisy", "reconstruction", "sample", "target")
    ]


def test_the_end_of_stage_one_suggests_a_scale(tmp_path, capsys):
    backend = get_backend("torch", device="cpu")
    train(
        tmp_path / "one", backend, stage1_hparams(tmp_path / "data", gan_training_start_step=None), stop_at=1
    )
    std = 1 / float(np.sqrt(newest(tmp_path / "one").weights["lcfm.ae.estimator.running_var_unsafe"]))
    assert f"--lcfm-z-scale {two_digits(std)} gives" in capsys.readouterr().out
    assert newest(tmp_path / "one").discriminator is None


def test_stage_two_needs_a_first_stage_that_fits(tmp_path, capsys):
    backend = get_backend("torch", device="cpu")
    one = stage1_hparams(tmp_path / "data", gan_training_start_step=None)
    with pytest.raises(ConfigError, match="give --enhancer-stage1-run-dir"):
        train(tmp_path / "two", backend, stage2_hparams(tmp_path / "data", None))
    train(tmp_path / "one", backend, one, stop_at=1)
    other = stage2_hparams(tmp_path / "data", tmp_path / "one", wn_layers=3, univnet_nc=8)
    with pytest.raises(
        ConfigError, match="univnet_nc: it has 4, this run 8; wn_layers: it has 2, this run 3"
    ):
        train(tmp_path / "two", backend, other)
    assert not (tmp_path / "two" / "hparams.yaml").exists()
    assert main(["train", "denoiser", str(tmp_path / "one"), "--stop-at", "1"]) == 1
    assert "enhancer-stage1" in capsys.readouterr().err


def test_half_precision_is_refused(tmp_path):
    config = tmp_path / "ds.json"
    sizes = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "Adam", "params": {"lr": 1e-4}}}
    config.write_text(json.dumps({"bf16": {"enabled": True}, **sizes}))
    hp = stage1_hparams(tmp_path / "data")
    from parivox.errors import BackendError

    with pytest.raises(BackendError, match="the enhancer is trained in float32"):
        train(tmp_path / "run", get_backend("torch", device="cpu"), hp, deepspeed_config=config)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["one", "two"])
def test_changing_backend_twice_in_float64(tmp_path, stage):
    """In float32 a vocoder's training multiplies each last bit by ten in a few updates; in float64 nothing hides."""
    backends = {name: get_backend(name, device="cpu", dtype="float64") for name in ("jax", "torch")}
    if stage == "one":
        hp = stage1_hparams(tmp_path / "data", max_steps=6)
    else:
        train(tmp_path / "one", backends["torch"], stage1_hparams(tmp_path / "data"), stop_at=1)
        hp = stage2_hparams(tmp_path / "data", tmp_path / "one", max_steps=6)
    for name in backends:
        train(tmp_path / name, backends[name], hp)
    for stop, turn in ((1, "jax"), (4, "torch"), (6, "jax")):
        train(tmp_path / "mixed", backends[turn], hp, stop_at=stop)
    names = {"mse", "sc", "mag"} | GAN_LOSSES if stage == "one" else {"cfm_l1", "denoiser_l1"}
    for other in ("torch", "mixed"):
        pairs = zip(
            read_metrics(tmp_path / "jax", "train"), read_metrics(tmp_path / other, "train"), strict=True
        )
        for ours, theirs in pairs:
            for name in names & ours.keys():
                assert theirs[name] == pytest.approx(ours[name], rel=bound("checkpoint exchange", "float64"))
        whole, found = newest(tmp_path / "jax"), newest(tmp_path / other)
        for group in ("weights", "exp_avg", "exp_avg_sq"):
            error = distance(getattr(found, group), getattr(whole, group))
            assert error < bound("checkpoint exchange", "float64"), group


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_kills_change_nothing(tmp_path, backend):
    stage1_hparams(tmp_path / "data")
    steps, log = 20, tmp_path / "log"
    rng = np.random.default_rng()

    def start(run):
        words = [str(tmp_path / "data"), str(run), "enhancer-stage1", backend, str(steps)]
        with log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.enhancer_folder", *words],
                cwd=ROOT,
                env={**process_environment(), "OMP_WAIT_POLICY": "passive"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    assert start(tmp_path / "whole").wait(timeout=900) == 0, log.read_text()
    seconds = [line["seconds"] for line in read_metrics(tmp_path / "whole", "train")]
    for _ in range(4):
        before = _lines(tmp_path / "broken")
        process = start(tmp_path / "broken")
        while _lines(tmp_path / "broken") == before:
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 3 * float(np.median(seconds))))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "broken").wait(timeout=900) == 0, log.read_text()
    assert unequal_runs(newest(tmp_path / "broken"), newest(tmp_path / "whole")) == []


def _lines(run) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
