"""Room impulse responses from files, and an artificial reverb."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import signal

from parivox.audio import read_audio, resample
from parivox.errors import AudioError

ARRAY_RATE = 44_100
"""Hz of a response stored as .npy, which does not say its rate."""

DECAY = 6.91
"""ln(1000): the amplitude falls by 60 dB within the reverberation time."""


@functools.lru_cache(maxsize=64)
def load_room(path: Path, rate: int) -> Float[np.ndarray, " t"]:
    """Read an impulse response: direct sound first, positive, unit energy, float64.

    What comes before the largest sample is cut, so that a convolved signal stays aligned with its source.
    The first channel of a file with many is taken: the average of several microphones is no room.

    Args:
        path: a 1-D .npy array at 44,100 Hz, or an audio file at its own rate.
        rate: Hz of the result.

    Raises:
        AudioError: not an array or audio file, not 1-D, empty, silent, NaN or Inf.
    """
    wav, rate_in = _load_array(path) if path.suffix.lower() == ".npy" else _load_audio(path)
    wav = resample(wav, rate_in, rate).astype(np.float64)
    if not wav.size or not np.abs(wav).max() > 0:
        raise AudioError(f"{path}: the impulse response is silent; remove it")
    start = int(np.abs(wav).argmax())
    wav = wav[start:] * np.sign(wav[start])
    return wav / np.sqrt(np.square(wav).sum())


def reverb(
    wav: Float[np.ndarray, " t"], rng: np.random.Generator, rate: int, decay: float, wet: float, delay: float
) -> Float[np.ndarray, " t"]:
    """Add a diffuse tail: noise that decays exponentially (Polack's model of late reverberation, 1988).

    Args:
        wav: dry signal.
        rng: draws the noise of the tail.
        rate: Hz.
        decay: reverberation time, seconds to fall by 60 dB.
        wet: amplitude of the tail, which has unit energy, beside the dry signal's 1.
        delay: seconds between the direct sound and the tail.
    """
    time = np.arange(max(1, round(decay * rate))) / rate
    tail = rng.standard_normal(time.size) * np.exp(-DECAY * time / decay)
    tail *= wet / np.sqrt(np.square(tail).sum())
    return convolve(wav, np.concatenate([[1.0], np.zeros(round(delay * rate)), tail]))


def convolve(wav: Float[np.ndarray, " t"], response: Float[np.ndarray, " k"]) -> Float[np.ndarray, " t"]:
    """The first t samples of the convolution."""
    return signal.oaconvolve(wav, response[: wav.shape[-1]])[: wav.shape[-1]]


def _load_audio(path: Path) -> tuple[Float[np.ndarray, " t"], int]:
    wav, rate = read_audio(path)
    return wav[0], rate


def _load_array(path: Path) -> tuple[Float[np.ndarray, " t"], int]:
    try:
        with path.open("rb") as file:
            wav = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise AudioError(f"{path}: not a NumPy array file ({error}); remove or replace it") from error
    if not isinstance(wav, np.ndarray) or wav.ndim != 1 or wav.dtype.kind not in "fiu":
        raise AudioError(f"{path}: an impulse response must be a 1-D array of numbers; convert or remove it")
    if not np.isfinite(wav).all():
        raise AudioError(f"{path}: the impulse response holds NaN or Inf; remove it")
    return wav.astype(np.float32), ARRAY_RATE
