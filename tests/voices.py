"""Speech-like sounds of the demo's voice model, for the tests of scores."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile as sf

from parivox.audio import resample
from parivox.data.voice import Speaker, speak

RATE = 44_100
MAN, WOMAN = Speaker(100.0, 0.95, 0.01), Speaker(220.0, 1.15, 0.02)


@lru_cache
def _spoken(speaker: Speaker, seconds: float, rate: int, seed: int) -> np.ndarray:
    wav = speak(speaker, seconds, RATE, np.random.default_rng(seed)).astype(np.float32)
    return resample(wav, RATE, rate)


def voice(seconds: float = 2.5, rate: int = RATE, speaker: Speaker = MAN, seed: int = 0) -> np.ndarray:
    """Babbled syllables (t,) float32."""
    return _spoken(speaker, seconds, rate, seed).copy()


def noisy(wav: np.ndarray, level: float = 0.02, seed: int = 1) -> np.ndarray:
    """The sound with white noise."""
    noise = np.random.default_rng(seed).standard_normal(wav.shape)
    return (wav + level * noise).astype(np.float32)


def save(path: Path, wav: np.ndarray, rate: int = RATE) -> Path:
    """Write (t,) or (c, t) as a file of floats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subtype = "FLOAT" if path.suffix == ".wav" else None
    sf.write(path, wav.T, rate, subtype=subtype)
    return path
