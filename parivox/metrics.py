"""Numbers that say how close a signal is to its target; computed in float64 for every input dtype."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

FLOOR = np.finfo(np.float64).tiny
"""Keeps logarithms and ratios of silence finite."""

LSD_FRAME, LSD_HOP = 2048, 512


def si_sdr(estimate: Float[np.ndarray, "*b t"], target: Float[np.ndarray, "*b t"]) -> Float[np.ndarray, "*b"]:
    """Scale-invariant signal-to-distortion ratio in dB, of signals made zero-mean.

    Formula (Le Roux et al. 2019, "SDR - half-baked or well done?"):
    10 log10(|a s|^2 / |a s - e|^2) with a = <e, s> / |s|^2, estimate e and target s.

    Args:
        estimate: signals (..., t).
        target: what they should be, same shape.

    Returns:
        dB (...); +inf for a perfect estimate, -inf where the estimate holds nothing of the target
        (a silent estimate of a sounding target), NaN where the target is silent and nothing is defined.
    """
    estimate, target = (_centred(x) for x in (estimate, target))
    energy = np.sum(target * target, axis=-1, keepdims=True)
    dot = np.sum(estimate * target, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = dot / energy * target
        wanted_energy = np.sum(wanted * wanted, axis=-1)
        ratio = wanted_energy / np.sum((wanted - estimate) ** 2, axis=-1)
        ratio = np.where((wanted_energy == 0) & (energy[..., 0] > 0), 0.0, ratio)
        return np.asarray(10 * np.log10(ratio))


def si_sdr_gain(
    estimate: Float[np.ndarray, "*b t"],
    mixture: Float[np.ndarray, "*b t"],
    target: Float[np.ndarray, "*b t"],
) -> Float[np.ndarray, "*b"]:
    """SI-SDR of the estimate minus SI-SDR of the mixture it was made from, in dB; (..., t) to (...)."""
    return np.asarray(si_sdr(estimate, target) - si_sdr(mixture, target))


def energy_ratio(
    estimate: Float[np.ndarray, "*b t"], target: Float[np.ndarray, "*b t"]
) -> Float[np.ndarray, "*b"]:
    """Energy of the estimate over energy of the target; near 0 when a model has fallen silent.

    Args:
        estimate: signals (..., t).
        target: what they should be, same shape.

    Returns:
        Sum of squares over sum of squares (...); a silent target counts as the smallest positive
        energy, so the ratio is finite or +inf, and 0 when both are silent.
    """
    estimate, target = (x.astype(np.float64) for x in (estimate, target))
    energy = np.maximum(np.sum(target * target, axis=-1), FLOOR)
    with np.errstate(over="ignore"):
        return np.asarray(np.sum(estimate * estimate, axis=-1) / energy)


def log_spectral_distance(
    estimate: Float[np.ndarray, "*b t"], target: Float[np.ndarray, "*b t"]
) -> Float[np.ndarray, "*b"]:
    """Log-spectral distance in dB: over frames, the mean of the root mean square difference of the spectra in dB.

    A. Gray and J. Markel, "Distance measures for speech processing", 1976. Frames of 2,048 samples every 512 under
    a Hann window; powers below -80 dB of the target's largest count as that, so that silence is not infinitely far.

    Args:
        estimate: signals (..., t), t at least 2,048.
        target: what they should be, same shape.

    Returns:
        dB (...), 0 for equal signals; NaN where the target is silent.
    """
    one, other = (_powers(x) for x in (estimate, target))
    peak = other.max(axis=(-2, -1), keepdims=True)
    floor = np.where(peak > 0, peak * 1e-8, np.nan)
    difference = 10 * np.log10(np.maximum(one, floor) / np.maximum(other, floor))
    return np.asarray(np.sqrt((difference**2).mean(axis=-1)).mean(axis=-1))


def _powers(wav: np.ndarray) -> np.ndarray:
    """Power spectra (..., frames, bins), float64."""
    frames = np.lib.stride_tricks.sliding_window_view(wav.astype(np.float64), LSD_FRAME, axis=-1)
    return np.abs(np.fft.rfft(frames[..., ::LSD_HOP, :] * np.hanning(LSD_FRAME + 1)[:-1])) ** 2


def _centred(wav: np.ndarray) -> np.ndarray:
    """float64 with zero mean over the last axis."""
    wav = wav.astype(np.float64)
    return wav - wav.mean(axis=-1, keepdims=True)
