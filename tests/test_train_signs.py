"""What a run tells: silence, files left out, evaluations, and batches that are not finite."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

import parivox.evaluation
import parivox.train
from parivox.data import TrainBatch, validation_batches
from parivox.data.stream import BatchStream
from parivox.errors import NonFiniteError
from parivox.evaluation import evaluate
from parivox.plots import spectrogram_png
from parivox.runlog import read_metrics
from parivox.train_watch import SILENT_STEPS
from tests.data_folder import folders
from tests.train_folder import (
    ToyBackend,
    curve,
    first_arrays,
    newest,
    random_batch,
    small_hparams,
    train,
    unequal,
)


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return small_hparams(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes far longer than all else here."""
    monkeypatch.setattr(parivox.evaluation, "spectrogram_png", lambda panels, rate, path: None)


def silence_warnings(out):
    return [line for line in out.splitlines() if "fallen silent" in line]


def test_silence_is_said_once(tmp_path, hp, capsys):
    train(tmp_path, ToyBackend(energy=lambda step: 0.0), hp.replace(max_steps=3 * SILENT_STEPS))
    found = silence_warnings(capsys.readouterr().out)
    assert len(found) == 1
    assert found[0].startswith(f"warning: at step {SILENT_STEPS} ")
    assert "lower max_lr" in found[0]


def test_silence_is_said_again_after_sound(tmp_path, hp, capsys):
    loud = SILENT_STEPS + 5
    energy = {loud: 0.5}
    backend = ToyBackend(energy=lambda step: energy.get(step, 0.009))
    train(tmp_path, backend, hp.replace(max_steps=loud + 2 * SILENT_STEPS))
    steps = [line.split(" the output")[0] for line in silence_warnings(capsys.readouterr().out)]
    assert steps == [f"warning: at step {SILENT_STEPS}", f"warning: at step {loud + SILENT_STEPS}"]


def test_a_model_that_sounds_is_not_warned_about(tmp_path, hp, capsys):
    # Nine silent updates in ten, and then just above the limit for good.
    backend = ToyBackend(energy=lambda step: 0.0 if step % SILENT_STEPS and step < 25 else 0.011)
    train(tmp_path, backend, hp.replace(max_steps=40))
    assert silence_warnings(capsys.readouterr().out) == []


def test_skipped_files_are_in_the_summary_of_every_later_run(tmp_path, capsys):
    hp = folders(
        tmp_path / "data",
        speech=60,
        training_seconds=0.02,
        batch_size_per_gpu=4,
        unet_hidden_dim=1,
        max_steps=20,
    )
    bad = sorted((tmp_path / "data/fg").rglob("*.wav"))[-2:]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    first = train(tmp_path / "run", ToyBackend(), hp)
    assert set(first["skipped_files"]) == set(map(str, bad))
    out = capsys.readouterr().out
    assert "2 files did not decode and were skipped: " in out
    assert all(out.count(f"skipped {path}: ") == 1 for path in bad)
    again = train(tmp_path / "run", ToyBackend(), hp)
    assert again["skipped_files"] == first["skipped_files"]
    assert json.loads((tmp_path / "run/summary.json").read_text())["skipped_files"] == first["skipped_files"]


def test_held_out_files_that_do_not_decode_are_in_the_summary(tmp_path, hp, monkeypatch):
    made = parivox.train.validation_batches

    def with_a_bad_file(*args, **kwargs):
        first, *others = made(*args, **kwargs)
        return [type(first)(first.arrays, first.records, (("held.wav", "empty"),), first.position), *others]

    monkeypatch.setattr(parivox.train, "validation_batches", with_a_bad_file)
    assert train(tmp_path, ToyBackend(), hp, stop_at=1)["skipped_files"] == {"held.wav": "empty"}


def test_evaluations(tmp_path, hp, monkeypatch):
    monkeypatch.setattr(parivox.evaluation, "spectrogram_png", spectrogram_png)
    summary = train(tmp_path, ToyBackend(), hp, eval_every=5)
    lines = read_metrics(tmp_path, "valid")
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert summary["evaluation"] == {k: v for k, v in lines[-1].items() if k != "event"}
    assert lines[0]["items"] == 10
    # The toy passes its input through.
    assert lines[0]["si_sdr_gain"] == pytest.approx(0, abs=1e-3)
    for step in (5, 10, 12):
        names = sorted(path.name for path in (tmp_path / f"eval/step-{step:08d}").iterdir())
        assert names == [
            f"{i}{end}" for i in (0, 1) for end in ("-denoised.wav", "-noisy.wav", "-target.wav", ".png")
        ]
    wav, rate = soundfile.read(tmp_path / "eval/step-00000012/0-denoised.wav")
    assert (wav.size, rate) == (882, 44_100)
    assert 0.9 < np.abs(wav).max() <= 1


def test_evaluation_again_after_a_kill(tmp_path, hp):
    """A run that was killed after its last evaluation, before its summary."""
    first = train(tmp_path, ToyBackend(), hp, eval_every=5)
    (tmp_path / "summary.json").unlink()
    assert train(tmp_path, ToyBackend(), hp, eval_every=5)["evaluation"] == first["evaluation"]
    assert [line["step"] for line in read_metrics(tmp_path, "valid")] == [5, 10, 12]


def test_evaluation_of_clean_mixtures(tmp_path, hp):
    """With `load_fg_only` a mixture is its target, whose SI-SDR is infinite."""
    summary = train(tmp_path, ToyBackend(), hp.replace(load_fg_only=True), stop_at=1)
    assert summary["evaluation"]["si_sdr_noisy"] == 100
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_evaluation_of_silent_targets(hp):
    silent = TrainBatch(
        {"noisy": random_batch(0)["noisy"], "target": np.zeros((2, 882), np.float32)}, (), (), 0
    )
    found = evaluate(ToyBackend(), None, [silent]).scalars()
    assert (found["si_sdr_noisy"], found["si_sdr_denoised"], found["si_sdr_gain"]) == (None, None, None)
    assert found["loss"] is not None


def test_evaluation_is_a_mean_over_items(hp):
    """Not over batches, of which the last may be smaller."""
    items = validation_batches(hp, seed=0, batch_size=1)
    backend = ToyBackend()
    singly = evaluate(backend, None, items)
    rows = [np.concatenate([b.arrays[name] for b in items]) for name in ("noisy", "target")]
    parts = [
        dict(zip(("noisy", "target"), [x[s] for x in rows], strict=True)) for s in (slice(0, 7), slice(7, 10))
    ]
    grouped = evaluate(backend, None, [TrainBatch(part, (), (), 0) for part in parts])
    assert grouped.scalars() == pytest.approx(singly.scalars(), rel=1e-6, abs=1e-6)


@pytest.fixture
def broken_batch(monkeypatch):
    """Make the n-th batch of every stream opened from now on hold a NaN."""

    def plant(number):
        made = BatchStream.__next__
        count = 0

        def following(self):
            nonlocal count
            batch, count = made(self), count + 1
            if count == number:
                batch.arrays["noisy"][0, 3] = np.nan
            return batch

        monkeypatch.setattr(BatchStream, "__next__", following)

    return plant


def test_batch_that_is_not_finite_stops_the_run(tmp_path, hp, broken_batch):
    train(tmp_path / "whole", ToyBackend(), hp, stop_at=7)
    broken_batch(8)
    with pytest.raises(NonFiniteError) as error:
        train(tmp_path / "run", ToyBackend(), hp)
    message = str(error.value)
    assert "\n" not in message
    saved = tmp_path / "run/nonfinite/step-00000007.npz"
    assert f"update 7 was not made: loss nan, gradient norm nan. The batch is in {saved} (from " in message
    assert f"the weights before it in {tmp_path / 'run/checkpoints/step-00000007.safetensors'}" in message
    with np.load(saved) as arrays:
        assert set(arrays.files) == {"noisy", "target"}
        assert np.isnan(arrays["noisy"][0, 3])
        assert np.isfinite(arrays["target"]).all()
    records = json.loads(saved.with_suffix(".json").read_text())["records"]
    assert len(records) == 2
    assert all(record in message for record in records)
    assert unequal(newest(tmp_path / "run"), newest(tmp_path / "whole")) == []
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_run_that_stopped_so_goes_on_when_the_batch_is_mended(tmp_path, hp, broken_batch):
    train(tmp_path / "whole", ToyBackend(), hp)
    broken_batch(5)
    with pytest.raises(NonFiniteError):
        train(tmp_path / "run", ToyBackend(), hp)
    train(tmp_path / "run", ToyBackend(), hp)
    assert unequal(newest(tmp_path / "run"), newest(tmp_path / "whole")) == []
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_toy_backend_keeps_its_state_when_not_finite(hp):
    backend = ToyBackend()
    state = backend.create_state(hp, first_arrays())
    batch = random_batch(0)
    batch["noisy"][0, 0] = np.inf
    state, result = backend.step(state, batch)
    assert not result.finite
    assert unequal(backend.export_state(state), first_arrays()) == []
