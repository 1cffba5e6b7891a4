"""Held-out losses and sound of a model in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parivox.audio import peak_normalize, write_audio
from parivox.backend import Backend
from parivox.data import TrainBatch
from parivox.features import SAMPLE_RATE
from parivox.metrics import energy_ratio, limited_si_sdr, log_spectral_distance
from parivox.plots import spectrogram_png

EXAMPLES = 2
"""Held-out items whose sound and picture are written."""

MADE = ("denoised", "reconstruction", "sample")
"""Sounds that a model makes, in the order of the pictures."""

TITLES = {
    "reconstruction": "reconstruction: the target through auto-encoder and vocoder",
    "sample": "sample: the noisy sound, enhanced",
}
"""What stands above a picture where the sound's name does not say it."""

Sounds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Means over the held-out items.

    Attributes:
        values: by name; NaN where nothing could be averaged. `loss` is the sum of the model's losses, and where there
            are several each has its own name; `sc` is a ratio over a whole batch, so it depends on the rows of one.
            `energy_ratio` is that of the first sound that the model makes and of what it should be. With a denoiser:
            `si_sdr_noisy`, `si_sdr_denoised` and `si_sdr_gain` in dB, against what the denoiser is to give. Of the
            enhancer's `reconstruction` and `sample`: the log-spectral distance to clean speech in dB, such as
            `lsd_sample`. An item whose target is silent has neither and is left out of these.
        items: how many were averaged.
    """

    values: dict[str, float]
    items: int

    def scalars(self) -> dict[str, float | None]:
        """The values by name, and `items`; None where nothing could be averaged."""
        found = {name: None if np.isnan(value) else value for name, value in self.values.items()}
        return {**found, "items": self.items}

    def text(self) -> str:
        """The values that say most, in one line."""
        values = self.values
        parts = [f"held-out loss {values['loss']:.4f}"]
        if "si_sdr_gain" in values:
            before, after = values["si_sdr_noisy"], values["si_sdr_denoised"]
            parts.append(f"SI-SDR {before:.1f} -> {after:.1f} dB ({values['si_sdr_gain']:+.1f})")
        distances = {name: value for name, value in values.items() if name.startswith("lsd_")}
        parts += [
            f"{name.removeprefix('lsd_')} {value:.1f} dB from the clean spectrum"
            for name, value in distances.items()
        ]
        return ", ".join(parts)


def evaluate(
    backend: Backend, state: Any, batches: Sequence[TrainBatch], folder: Path | None = None
) -> Evaluation:
    """Run the held-out items through a model, without an update.

    Args:
        backend: what computes.
        state: its training state.
        batches: held-out batches.
        folder: where to write sound and pictures of the first items; None writes nothing.
    """
    losses: dict[str, float] = {}
    parts: list[Sounds] = []
    for batch in batches:
        held = backend.evaluate(state, batch.arrays)
        count = len(batch.arrays["target"])
        losses = {name: losses.get(name, 0.0) + loss * count for name, loss in held.losses.items()}
        given = {
            name: batch.arrays[name] for name in ("noisy", "distorted", "target") if name in batch.arrays
        }
        parts.append({**given, **{name: sound.astype(np.float32) for name, sound in held.sounds.items()}})
    sounds = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    sounds["target"] = peak_normalize(sounds["target"])
    if folder is not None:
        _write_examples(folder, sounds)
    items = len(sounds["target"])
    means = {name: total / items for name, total in losses.items()}
    values = {"loss": sum(means.values()), **(means if len(means) > 1 else {}), **_compared(sounds)}
    return Evaluation(values, items)


def _compared(sounds: Sounds) -> dict[str, float]:
    """What the sounds say."""
    target, values = sounds["target"], {}
    wanted = target
    if "denoised" in sounds:
        wanted = peak_normalize(sounds["distorted"]) if "distorted" in sounds else target
        before, after = (limited_si_sdr(sounds[name], wanted) for name in ("noisy", "denoised"))
        sounding = ~np.isnan(before)
        values = {
            "si_sdr_noisy": _mean(before[sounding]),
            "si_sdr_denoised": _mean(after[sounding]),
            "si_sdr_gain": _mean((after - before)[sounding]),
        }
    first = next(sounds[name] for name in MADE if name in sounds)
    values["energy_ratio"] = float(energy_ratio(first.reshape(1, -1), wanted.reshape(1, -1))[0])
    for name in ("reconstruction", "sample"):
        if name in sounds:
            distances = log_spectral_distance(sounds[name], target)
            values[f"lsd_{name}"] = _mean(distances[~np.isnan(distances)])
    return values


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _write_examples(folder: Path, sounds: Sounds) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shown = [name for name in ("noisy", *MADE, "target") if name in sounds]
    for i in range(min(EXAMPLES, len(sounds["target"]))):
        panels = [(name, sounds[name][i]) for name in shown]
        for name, wav in panels:
            # The model's output may go a little beyond 1; a file may not.
            write_audio(folder / f"{i}-{name}.wav", (wav / max(1.0, np.abs(wav).max()))[None], SAMPLE_RATE)
        titled = [(TITLES.get(name, name), wav) for name, wav in panels]
        spectrogram_png(titled, SAMPLE_RATE, folder / f"{i}.png")
