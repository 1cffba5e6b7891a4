"""What an evaluation says and writes of each kind of model, which here is a table of sounds."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.image import imread

import parivox.evaluation
from parivox.audio import peak_normalize, read_audio
from parivox.backend import Batch, HeldOut
from parivox.data import TrainBatch
from parivox.evaluation import evaluate
from parivox.metrics import LIMIT, si_sdr
from tests.train_folder import ToyBackend

SAMPLES = 4200
DENOISER = {"loss", "energy_ratio", "si_sdr_noisy", "si_sdr_denoised", "si_sdr_gain", "items"}


def batches(*rows: int, names: tuple[str, ...] = ("target",), seed: int = 0) -> list[TrainBatch]:
    """Batches of so many rows each, the same rows whatever the grouping."""
    rng, made = np.random.default_rng(seed), []
    for count in rows:
        sounds = [{name: rng.uniform(-0.5, 0.5, SAMPLES) for name in names} for _ in range(count)]
        arrays = {name: np.stack([sound[name] for sound in sounds]).astype(np.float32) for name in names}
        made.append(TrainBatch(arrays, (), (), 0))
    return made


class Table(ToyBackend):
    """A backend whose models are functions from held-out rows."""

    def evaluate(self, state: Callable[[Batch], HeldOut], batch: Batch) -> HeldOut:
        return state(batch)


def first_stage(batch: Batch) -> HeldOut:
    target = peak_normalize(batch["target"])
    level = float(np.abs(batch["target"]).mean(axis=-1).mean())
    return HeldOut({"mse": level, "sc": 0.25, "mag": 0.5}, {"reconstruction": 0.5 * target})


def second_stage(batch: Batch) -> HeldOut:
    target = peak_normalize(batch["target"])
    sounds = {"denoised": batch["distorted"], "reconstruction": target, "sample": 0.1 * target}
    return HeldOut({"cfm_l1": 0.75, "denoiser_l1": 0.125}, sounds)


def test_the_denoiser_keeps_the_names_of_older_logs():
    def denoiser(batch: Batch) -> HeldOut:
        return HeldOut({"l1": 0.5}, {"denoised": 2 * peak_normalize(batch["target"])})

    items = batches(2, 1, names=("noisy", "target"))
    found = evaluate(Table(), denoiser, items)
    values = found.scalars()
    assert values.keys() == DENOISER and values["items"] == 3
    assert (
        values["loss"] == 0.5
        and values["energy_ratio"] == pytest.approx(4)
        and values["si_sdr_denoised"] == LIMIT
    )
    assert found.text().startswith("held-out loss 0.5000, SI-SDR ")


def test_the_first_stage():
    singly = evaluate(Table(), first_stage, batches(1, 1, 1))
    grouped = evaluate(Table(), first_stage, batches(2, 1))
    assert singly.scalars() == pytest.approx(grouped.scalars(), rel=1e-6)
    values = singly.values
    assert values.keys() == {"loss", "mse", "sc", "mag", "energy_ratio", "lsd_reconstruction"}
    assert values["loss"] == pytest.approx(values["mse"] + 0.75)
    assert values["energy_ratio"] == pytest.approx(0.25)
    assert values["lsd_reconstruction"] == pytest.approx(20 * np.log10(2), rel=1e-5)
    assert "SI-SDR" not in singly.text() and "reconstruction 6.0 dB from the clean spectrum" in singly.text()


def test_the_second_stage():
    items = batches(2, names=("noisy", "target", "distorted"))
    found = evaluate(Table(), second_stage, items)
    values = found.values
    assert values.keys() == (DENOISER - {"items"}) | {
        "cfm_l1",
        "denoiser_l1",
        "lsd_reconstruction",
        "lsd_sample",
    }
    assert values["loss"] == 0.875
    # The denoiser is to give the distorted speech, not the clean one.
    arrays = items[0].arrays
    assert values["si_sdr_denoised"] == LIMIT
    assert values["si_sdr_noisy"] == pytest.approx(float(si_sdr(arrays["noisy"], arrays["distorted"]).mean()))
    assert values["lsd_reconstruction"] == 0 and values["lsd_sample"] == pytest.approx(20, rel=1e-5)
    assert "sample 20.0 dB from the clean spectrum" in found.text()


def test_silent_speech_is_left_out_of_what_silence_has_not():
    items = batches(3, names=("noisy", "target", "distorted"))
    whole = evaluate(Table(), second_stage, items).values
    for name in ("target", "distorted"):
        items[0].arrays[name][1] = 0
    found = evaluate(Table(), second_stage, items)
    assert found.items == 3 and found.values["lsd_sample"] == pytest.approx(whole["lsd_sample"])
    assert np.isfinite(list(found.values.values())).all()


@pytest.mark.parametrize(
    ("held_out", "names", "shown"),
    [
        (first_stage, ("target",), ["reconstruction", "target"]),
        (
            second_stage,
            ("noisy", "target", "distorted"),
            ["noisy", "denoised", "reconstruction", "sample", "target"],
        ),
    ],
)
def test_sounds_and_pictures_of_the_first_items(tmp_path, monkeypatch, held_out, names, shown):
    drawn, draw = [], parivox.evaluation.spectrogram_png

    def listed(panels, rate, path):
        drawn.append([title.split(":")[0] for title, _ in panels])
        return draw(panels, rate, path) if len(drawn) == 1 else b""

    monkeypatch.setattr(parivox.evaluation, "spectrogram_png", listed)
    items = batches(2, 1, names=names)
    evaluate(Table(), held_out, items, tmp_path)
    assert drawn == [shown, shown]
    assert {path.name for path in tmp_path.glob("*.wav")} == {
        f"{k}-{name}.wav" for k in (0, 1) for name in shown
    }
    wav, rate = read_audio(tmp_path / "1-target.wav")
    assert rate == 44_100
    np.testing.assert_allclose(wav[0], peak_normalize(items[0].arrays["target"])[1], atol=1e-4)
    height, width = imread(io.BytesIO((tmp_path / "0.png").read_bytes()), format="png").shape[:2]
    assert width == 1200 and height > 200 * len(shown)
