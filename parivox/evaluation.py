"""Held-out loss and sound of a model in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parivox.audio import peak_normalize, write_audio
from parivox.backend import Backend
from parivox.data import TrainBatch
from parivox.features import SAMPLE_RATE
from parivox.metrics import energy_ratio, si_sdr
from parivox.plots import spectrogram_png

EXAMPLES = 2
"""Held-out items whose sound and picture are written."""

LIMIT = 100.0
"""SI-SDR in dB beyond which an item counts as so much and no more."""


@dataclass(frozen=True)
class Evaluation:
    """Means over the held-out items.

    Attributes:
        loss: the training loss.
        si_sdr_noisy: SI-SDR of the mixtures, dB.
        si_sdr_denoised: SI-SDR of the outputs, dB.
        si_sdr_gain: the second less the first, dB.
        energy_ratio: energy of the outputs over energy of the targets.
        items: how many were averaged; items with a silent target have no SI-SDR and are left out of it.
    """

    loss: float
    si_sdr_noisy: float
    si_sdr_denoised: float
    si_sdr_gain: float
    energy_ratio: float
    items: int

    def scalars(self) -> dict[str, float | None]:
        """The values by name; None where nothing could be averaged."""
        return {name: None if np.isnan(value) else value for name, value in asdict(self).items()}


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
    losses, rows = [], []
    for batch in batches:
        loss, output = backend.evaluate(state, batch.arrays)
        losses.append((loss, len(output)))
        rows += zip(batch.arrays["noisy"], output.astype(np.float32), batch.arrays["target"], strict=True)
    noisy, output, target = (np.stack(parts) for parts in zip(*rows, strict=True))
    target = peak_normalize(target)
    if folder is not None:
        _write_examples(folder, noisy, output, target)
    # A silent output has an SI-SDR of -inf, a perfect one of +inf; a mean must stay a number that still says it.
    before, after = (np.clip(si_sdr(x, target), -LIMIT, LIMIT) for x in (noisy, output))
    sounding = ~np.isnan(before)
    return Evaluation(
        loss=sum(loss * count for loss, count in losses) / len(rows),
        si_sdr_noisy=_mean(before[sounding]),
        si_sdr_denoised=_mean(after[sounding]),
        si_sdr_gain=_mean((after - before)[sounding]),
        energy_ratio=float(energy_ratio(output.reshape(1, -1), target.reshape(1, -1))[0]),
        items=len(rows),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _write_examples(folder: Path, noisy: np.ndarray, output: np.ndarray, target: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(min(EXAMPLES, len(noisy))):
        panels = [("noisy", noisy[i]), ("denoised", output[i]), ("target", target[i])]
        for name, wav in panels:
            # The model's output may go a little beyond 1; a file may not.
            write_audio(folder / f"{i}-{name}.wav", (wav / max(1.0, np.abs(wav).max()))[None], SAMPLE_RATE)
        spectrogram_png(panels, SAMPLE_RATE, folder / f"{i}.png")
