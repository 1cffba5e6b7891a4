"""The training loop around a backend: going on, stopping, and what it refuses."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest

import parivox.evaluation
from parivox.checkpoint import list_checkpoints, load_checkpoint
from parivox.errors import ConfigError
from parivox.run import locked
from parivox.runlog import read_metrics
from tests.train_folder import ToyBackend, curve, newest, small_hparams, train, unequal


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return small_hparams(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes far longer than all else here."""
    monkeypatch.setattr(parivox.evaluation, "spectrogram_png", lambda panels, rate, path: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, hp):
    """A run of 12 updates that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(folder, ToyBackend(), hp)
    return folder


def assert_same_run(folder, whole):
    assert unequal(newest(folder), newest(whole)) == []
    assert curve(folder) == curve(whole)
    assert [step for step, _ in curve(folder)] == list(range(1, 13))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_losses_differ_from_update_to_update(whole):
    # Else the comparisons below could not see a stream that starts anew.
    assert len({loss for _, loss in curve(whole)}) == 12


def test_stop_at_and_going_on(tmp_path, hp, whole):
    first = train(tmp_path, ToyBackend(), hp, stop_at=5)
    assert (first["step"], first["finished"]) == (5, False)
    assert newest(tmp_path).step == 5
    second = train(tmp_path, ToyBackend(), None, checkpoint_every=3)
    assert (second["step"], second["finished"]) == (12, True)
    assert_same_run(tmp_path, whole)


def test_stopping_again_and_again(tmp_path, hp, whole):
    for stop in (1, 2, 4, 5, 12):
        train(tmp_path, ToyBackend(), hp, stop_at=stop)
    assert_same_run(tmp_path, whole)


def test_worker_processes_and_going_on(tmp_path, hp, whole):
    train(tmp_path, ToyBackend(), hp, stop_at=3, workers=2)
    train(tmp_path, ToyBackend(), hp)
    assert_same_run(tmp_path, whole)


def test_stop_at_the_step_reached_makes_no_update(tmp_path, hp):
    train(tmp_path, ToyBackend(), hp, stop_at=4)
    again = train(tmp_path, ToyBackend(), hp, stop_at=2)
    assert again["step"] == 4
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3, 4]


def test_crash_between_checkpoints(tmp_path, hp, whole):
    def fail(step):
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ToyBackend(fail), hp, checkpoint_every=5)
    assert newest(tmp_path).step == 5
    assert curve(tmp_path)[-1][0] == 8
    train(tmp_path, ToyBackend(), hp)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_after_the_update_with_a_checkpoint(tmp_path, hp, whole, capsys, kind):
    before = signal.getsignal(kind)
    summary = train(tmp_path, ToyBackend(lambda step: step == 7 and os.kill(os.getpid(), kind)), hp)
    assert (summary["step"], summary["stopped_by"], summary["finished"]) == (7, kind.name, False)
    assert newest(tmp_path).step == 7
    assert signal.getsignal(kind) is before
    assert f"stopped by {kind.name} at step 7; the same command goes on" in capsys.readouterr().out
    train(tmp_path, ToyBackend(), hp)
    assert_same_run(tmp_path, whole)


def test_second_interrupt_ends_at_once(tmp_path, hp):
    def twice(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ToyBackend(twice), hp, checkpoint_every=4)
    assert newest(tmp_path).step == 4


def test_second_process_is_refused(tmp_path, hp):
    with locked(tmp_path), pytest.raises(ConfigError) as error:
        train(tmp_path, ToyBackend(), hp)
    assert (
        one_line(error) == f"{tmp_path}: another process is training here; wait for it or use another folder"
    )
    assert train(tmp_path, ToyBackend(), hp, stop_at=1)["step"] == 1


def test_an_error_inside_is_not_taken_for_a_lock(tmp_path):
    with pytest.raises(BlockingIOError, match="full pipe"), locked(tmp_path):
        raise BlockingIOError("full pipe")


def test_run_folder_that_is_a_file(tmp_path, hp):
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(ConfigError) as error:
        train(path, ToyBackend(), hp)
    assert one_line(error).startswith(f"{path}: cannot be used as a run folder")


def test_other_hyperparameters_are_refused_field_by_field(tmp_path, hp):
    train(tmp_path, ToyBackend(), hp, stop_at=1)
    with pytest.raises(ConfigError) as error:
        train(tmp_path, ToyBackend(), hp.replace(max_lr=5e-4, batch_size_per_gpu=3))
    for part in ("batch_size_per_gpu: run has 2, given is 3", "max_lr: run has 0.001, given is 0.0005"):
        assert part in one_line(error)


def test_other_hyperparameters_are_refused_when_the_file_is_gone(tmp_path, hp):
    train(tmp_path, ToyBackend(), hp, stop_at=1)
    (tmp_path / "hparams.yaml").unlink()
    with pytest.raises(ConfigError, match=re.escape("max_lr: run has 0.001, given is 0.0005")):
        train(tmp_path, ToyBackend(), hp.replace(max_lr=5e-4))
    assert train(tmp_path, ToyBackend(), hp, stop_at=2)["step"] == 2


def test_edited_width_is_refused(tmp_path, hp):
    train(tmp_path, ToyBackend(), hp, stop_at=1)
    hp.replace(unet_hidden_dim=2).save(tmp_path / "hparams.yaml")
    with pytest.raises(ConfigError) as error:
        train(tmp_path, ToyBackend(), None)
    assert "unet_hidden_dim is 2, the checkpoint was made with 1" in one_line(error)


def test_hyperparameters_edited_on_purpose_are_used(tmp_path, hp):
    train(tmp_path, ToyBackend(), hp)
    hp.replace(max_steps=14).save(tmp_path / "hparams.yaml")
    assert train(tmp_path, ToyBackend(), None)["step"] == 14


def test_another_seed_is_refused(tmp_path, hp):
    train(tmp_path, ToyBackend(), hp, seed=3, stop_at=1)
    with pytest.raises(ConfigError) as error:
        train(tmp_path, ToyBackend(), hp, seed=4)
    assert one_line(error) == f"{tmp_path}: was begun with seed 3, given is 4; leave --seed out"
    assert train(tmp_path, ToyBackend(), hp, seed=3, stop_at=2)["step"] == 2


def test_seed_changes_weights_and_data(tmp_path, hp, whole):
    train(tmp_path, ToyBackend(), hp, seed=1)
    assert not {loss for _, loss in curve(tmp_path)} & {loss for _, loss in curve(whole)}


def test_torn_newest_checkpoint(tmp_path, hp, whole, capsys):
    train(tmp_path, ToyBackend(), hp, stop_at=9, checkpoint_every=3)
    torn = list_checkpoints(tmp_path)[0]
    torn.write_bytes(torn.read_bytes()[:-1000])
    train(tmp_path, ToyBackend(), hp)
    out = capsys.readouterr().out
    assert out.count(f"skipping a checkpoint: {torn}: damaged") == 1
    assert f"going on with {tmp_path} from step 6 to 12" in out
    assert_same_run(tmp_path, whole)


def test_finished_run_is_left_as_it_is(tmp_path, hp):
    first = train(tmp_path, ToyBackend(), hp, stop_at=3)
    before = newest(tmp_path)
    again = train(tmp_path, ToyBackend(), hp, stop_at=3)
    assert unequal(newest(tmp_path), before) == []
    assert again == first
    assert [line["step"] for line in read_metrics(tmp_path, "valid")] == [3]


def test_checkpoints_that_stay(tmp_path, hp):
    train(tmp_path, ToyBackend(), hp, checkpoint_every=2, keep=2, permanent_every=5)
    steps = [int(path.stem.removeprefix("step-")) for path in list_checkpoints(tmp_path)]
    assert steps == [12, 10, 8, 5]
    assert [load_checkpoint(path).meta.permanent for path in list_checkpoints(tmp_path)] == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    "option", ["stop_at", "workers", "checkpoint_every", "keep", "permanent_every", "eval_every", "seed"]
)
def test_options_that_make_no_sense(tmp_path, hp, option):
    with pytest.raises(ConfigError) as error:
        train(tmp_path, ToyBackend(), hp, **{option: -1})
    assert "-1" in one_line(error)


@pytest.mark.parametrize("option", ["stop_at", "checkpoint_every", "keep"])
def test_options_of_zero(tmp_path, hp, option):
    with pytest.raises(ConfigError, match="0; it must be 1 or more"):
        train(tmp_path, ToyBackend(), hp, **{option: 0})


def test_metrics_of_an_update(whole):
    line = read_metrics(whole, "train")[4]
    assert line["step"] == 5
    assert line["backend"] == "jax"
    assert line["lr"] == pytest.approx(np.interp(3, [2, 12], [1e-3, 1e-5]))
    assert 0 <= line["data_wait"] <= 1
    assert line["audio_per_second"] > 0
