"""The feature specification and its float64 NumPy oracle.

The numbers (`MelSpec`, `StftSpec`) and the constant tables (window, mel filter bank) come from here for
both backends. The transforms below are the independent reference that the backends are compared with:
plain, slow, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Complex, Float

from parivox.hparams import WAV_RATE

SAMPLE_RATE = WAV_RATE
"""Samples a second of everything the models see."""

NORMALIZE_EPS = 1e-7
"""Added to the peak in peak normalisation."""


@dataclass(frozen=True)
class StftSpec:
    """A short-time Fourier transform with a periodic Hann window as long as the transform.

    Attributes:
        n_fft: transform and window length, samples.
        hop: samples between frames.
        pad_mode: what lies beyond the ends: `reflect` or `constant` (zeros), n_fft // 2 on each side.
    """

    n_fft: int
    hop: int
    pad_mode: Literal["reflect", "constant"] = "reflect"


@dataclass(frozen=True)
class MelSpec:
    """The normalised log-mel spectrogram of the model.

    Attributes:
        stft: transform before the filter bank, padded with zeros.
        num_mels: bands, on the Slaney scale from 0 to 22,050 Hz.
        preemphasis: y[t] = x[t] - preemphasis * x[t - 1].
        magnitude_min: floor below the logarithm.
        min_db: level in dB that becomes 0.
        headroom_db: level in dB, above 0 dB, that becomes 1.
    """

    stft: StftSpec = StftSpec(2048, 420, "constant")
    num_mels: int = 128
    preemphasis: float = 0.97
    magnitude_min: float = 1e-4
    min_db: float = -80.0
    headroom_db: float = 15.0


DENOISER_STFT = StftSpec(1680, 420, "reflect")
"""Transform that the denoiser works on."""


def hann_window(length: int) -> Float[np.ndarray, " length"]:
    """Periodic Hann window of `length` samples, float64: 0.5 - 0.5 cos(2 pi k / length)."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def padded_window(window: Float[np.ndarray, " w"], n_fft: int) -> Float[np.ndarray, " n"]:
    """A window in the middle of a longer transform, zeros on both sides; `n_fft` is at least its length."""
    left = (n_fft - len(window)) // 2
    return np.pad(window, (left, n_fft - len(window) - left))


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    linear = hz / (200 / 3)
    log_step = np.log(6.4) / 27
    return np.where(hz < 1000, linear, 15 + np.log(np.maximum(hz, 1000) / 1000) / log_step)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    log_step = np.log(6.4) / 27
    return np.where(mel < 15, mel * (200 / 3), 1000 * np.exp(log_step * (np.maximum(mel, 15) - 15)))


@lru_cache
def _mel_filter_bank(rate: int, n_fft: int, num_mels: int) -> np.ndarray:
    bins = np.linspace(0, rate / 2, n_fft // 2 + 1)
    low, high = _hz_to_mel(np.array([0.0, rate / 2]))
    edges = _mel_to_hz(np.linspace(low, high, num_mels + 2))
    width = np.diff(edges)
    rise = (bins[:, None] - edges[None, :-2]) / width[:-1]
    fall = (edges[None, 2:] - bins[:, None]) / width[1:]
    triangle = np.maximum(0, np.minimum(rise, fall))
    bank = triangle * (2 / (edges[2:] - edges[:-2]))
    bank.setflags(write=False)
    return bank


def mel_filter_bank(
    rate: int = SAMPLE_RATE, n_fft: int = 2048, num_mels: int = 128
) -> Float[np.ndarray, "f m"]:
    """Slaney mel filter bank from 0 Hz to rate / 2 with Slaney (equal area) normalisation, float64, read-only.

    The scale is linear below 1 kHz (200/3 Hz a mel) and logarithmic above (27 mels for a factor of 6.4):
    M. Slaney, "Auditory Toolbox", 1998.
    """
    return _mel_filter_bank(rate, n_fft, num_mels)


@lru_cache
def mel_bands(
    rate: int = SAMPLE_RATE, n_fft: int = 2048, num_mels: int = 128, together: int = 16
) -> tuple[tuple[slice, Float[np.ndarray, "k bands"]], ...]:
    """`mel_filter_bank` without nearly all of its zeros: some neighbouring bands and the k bins that they touch.

    Two bands in three are narrower than ten bins, yet a product with the whole bank passes over all bins for each.

    Returns:
        For the first bands, the next and so on: which bins, and their columns of the bank, read-only.
    """
    bank, pieces = mel_filter_bank(rate, n_fft, num_mels), []
    for first in range(0, num_mels, together):
        columns = bank[:, first : first + together]
        touched = np.flatnonzero(columns.any(axis=1))
        bins = slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 1)
        pieces.append((bins, columns[bins]))
    return tuple(pieces)


def stft_oracle(x: Float[np.ndarray, "b t"], spec: StftSpec) -> Complex[np.ndarray, "b f n"]:
    """Centred STFT in float64: f = n_fft // 2 + 1 bins, n = 1 + t // hop frames, no scaling.

    Raises:
        ValueError: reflect padding needs more than n_fft // 2 samples.
    """
    half = spec.n_fft // 2
    if spec.pad_mode == "reflect" and x.shape[-1] <= half:
        raise ValueError(f"reflect padding needs more than {half} samples, got {x.shape[-1]}")
    padded = np.pad(x.astype(np.float64), ((0, 0), (half, half)), mode=spec.pad_mode)  # type: ignore[call-overload]
    count = 1 + x.shape[-1] // spec.hop
    index = spec.hop * np.arange(count)[:, None] + np.arange(spec.n_fft)
    frames = padded[:, index] * hann_window(spec.n_fft)
    return np.swapaxes(np.fft.rfft(frames), 1, 2)


def istft_oracle(z: Complex[np.ndarray, "b f n"], spec: StftSpec) -> Float[np.ndarray, "b t"]:
    """Inverse of `stft_oracle` by weighted overlap-add, float64, t = hop * (n - 1) samples.

    D. Griffin and J. Lim, "Signal estimation from modified short-time Fourier transform", 1984.
    """
    window = hann_window(spec.n_fft)
    frames = np.fft.irfft(np.swapaxes(z, 1, 2), n=spec.n_fft) * window
    count = frames.shape[1]
    out = np.zeros((frames.shape[0], spec.n_fft + spec.hop * (count - 1)))
    weight = np.zeros(out.shape[1])
    for k in range(count):
        part = slice(k * spec.hop, k * spec.hop + spec.n_fft)
        out[:, part] += frames[:, k]
        weight[part] += window**2
    keep = slice(spec.n_fft // 2, spec.n_fft // 2 + spec.hop * (count - 1))
    return out[:, keep] / weight[keep]


def mel_oracle(x: Float[np.ndarray, "b t"], spec: MelSpec | None = None) -> Float[np.ndarray, "b m n"]:
    """Normalised log-mel spectrogram in float64, all n = 1 + t // hop frames (the models drop the last)."""
    spec = spec or MelSpec()
    x = x.astype(np.float64)
    x = x - spec.preemphasis * np.pad(x, ((0, 0), (1, 0)))[:, :-1]
    magnitude = np.abs(stft_oracle(x, spec.stft))
    bank = mel_filter_bank(SAMPLE_RATE, spec.stft.n_fft, spec.num_mels)
    mel = np.einsum("bfn,fm->bmn", magnitude, bank)
    decibel = 20 * np.log10(np.maximum(mel, spec.magnitude_min))
    return (decibel - spec.min_db) / (spec.headroom_db - spec.min_db)
