"""Small folders of made-up recordings for the tests of the data pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parivox.audio import write_audio
from parivox.hparams import DenoiserHParams

RATE = 44_100


def tone(path: Path, seconds: float, rate: int = RATE, channels: int = 1) -> Path:
    """A file that sounds like no other: a tone and noise drawn from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()))
    time = np.arange(round(seconds * rate)) / rate
    wav = 0.4 * np.sin(2 * np.pi * rng.uniform(100, 900) * time) + 0.05 * rng.standard_normal(
        (channels, time.size)
    )
    write_audio(path, wav.astype(np.float32), rate)
    return path


def room(path: Path, seconds: float = 0.05) -> Path:
    """A decaying impulse response as .npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * RATE)) / RATE
    wav = np.random.default_rng(list(path.name.encode())).standard_normal(time.size) * np.exp(
        -8 * time / seconds
    )
    wav[20] = 5.0
    np.save(path, wav.astype(np.float32))
    return path


def folders(
    root: Path, speech: int = 14, noise: int = 3, rooms: int = 2, **fields: object
) -> DenoiserHParams:
    """Three folders below `root`, and the hyperparameters that name them: items of 0.1 s, batches of 4."""
    for k in range(speech):
        rate = 16_000 if k % 5 == 4 else RATE
        tone(
            root / "fg" / f"reader{k % 3}" / f"{k:03}.{'wav' if k % 2 else 'flac'}",
            0.3,
            rate,
            1 + (k % 4 == 3),
        )
    for k in range(noise):
        tone(root / "bg" / f"{k}.wav", 0.4)
    for k in range(rooms):
        room(root / "rir" / f"{k}.npy")
    values = {"training_seconds": 0.1, "batch_size_per_gpu": 4, "nj": 0} | fields
    return DenoiserHParams.from_dict(
        {"fg_dir": root / "fg", "bg_dir": root / "bg", "rir_dir": root / "rir", **values}
    )
