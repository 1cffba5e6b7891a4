"""Numbers that say how close a signal is to its target; computed in float64 for every input dtype."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from parivox.features import mel_filter_bank

FLOOR = np.finfo(np.float64).tiny
"""Keeps logarithms and ratios of silence finite."""

LIMIT = 100.0
"""SI-SDR in dB beyond which a sound counts as so much and no more."""

LSD_FRAME, LSD_HOP = 2048, 512

MCD_RATE = 16_000
MCD_FRAME = (400, 160, 512)  # samples of a frame, from one to the next, and of the transform
MCD_BANDS, MCD_ORDER = 40, 13
MCD_RANGE = 1e-4  # share of the loudest frame's power, 40 dB below it

FRAMES = 256
"""Spectra that are held at a time."""


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


def limited_si_sdr(
    estimate: Float[np.ndarray, "*b t"], target: Float[np.ndarray, "*b t"]
) -> Float[np.ndarray, "*b"]:
    """`si_sdr` within -100 to 100 dB, so that a mean stays a number: a perfect estimate has 100, a silent one -100."""
    return np.asarray(np.clip(si_sdr(estimate, target), -LIMIT, LIMIT))


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
    spec = (LSD_FRAME, LSD_HOP, LSD_FRAME)
    floor = _floor(target, spec)
    total, frames = np.zeros(target.shape[:-1]), 0
    for one, other in zip(_powers(estimate, spec), _powers(target, spec), strict=True):
        difference = 10 * np.log10(np.maximum(one, floor) / np.maximum(other, floor))
        total = total + np.sqrt((difference**2).mean(axis=-1)).sum(axis=-1)
        frames += one.shape[-2]
    return np.asarray(total / frames)


def mel_cepstral_distortion(
    estimate: Float[np.ndarray, "*b t"], target: Float[np.ndarray, "*b t"]
) -> Float[np.ndarray, "*b"]:
    """Mel-cepstral distortion in dB of sounds at 16,000 Hz: how far apart the coarse shapes of the spectra are.

    R. Kubichek, "Mel-cepstral distance measure for objective speech quality assessment", 1993:
    10 / ln 10 sqrt(2 sum_d (c_d - c'_d)^2) for d = 1 to 13, averaged over frames, with
    c_d = 1/M sum_m ln P_m cos(pi d (m + 1/2) / M) and P_m the power in mel band m of M = 40. So it is the root mean
    square distance in dB of two spectra over the mel scale, smoothed and without their level (c_0).

    Frames of 25 ms every 10 ms under a Hann window, bands as `mel_filter_bank`. A frame counts where the target is
    less than 40 dB below its loudest: pauses would say how silent they are, not how the speech sounds. Powers
    below -80 dB of a sound's own largest count as that. Nothing is warped in time.

    Args:
        estimate: signals (..., t) at 16,000 Hz, t at least 400.
        target: what they should be, same shape.

    Returns:
        dB (...), 0 for signals that differ in level alone; NaN where the target is silent. A silent estimate is
        taken for one with a flat spectrum.
    """
    bank, waves = mel_filter_bank(MCD_RATE, MCD_FRAME[2], MCD_BANDS), _cosines()
    floors = _floor(estimate, MCD_FRAME, bank), _floor(target, MCD_FRAME, bank)
    floors = np.where(np.isnan(floors[0]), 1.0, floors[0]), floors[1]
    loudest = np.max(
        [(power @ bank).sum(axis=-1).max(axis=-1) for power in _powers(target, MCD_FRAME)], axis=0
    )
    total, frames = np.zeros(target.shape[:-1]), np.zeros(target.shape[:-1])
    for one, other in zip(_powers(estimate, MCD_FRAME), _powers(target, MCD_FRAME), strict=True):
        bands = np.maximum(one @ bank, floors[0]), np.maximum(other @ bank, floors[1])
        difference = np.log(bands[0] / bands[1]) @ waves
        distance = 10 / np.log(10) * np.sqrt(2 * (difference**2).sum(axis=-1))
        speech = (other @ bank).sum(axis=-1) > MCD_RANGE * loudest[..., None]
        total, frames = total + np.where(speech, distance, 0).sum(axis=-1), frames + speech.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / frames)


def _cosines() -> np.ndarray:
    """What turns log powers of mel bands into cepstral coefficients 1 to 13; (band, coefficient)."""
    places = np.pi * (np.arange(MCD_BANDS) + 0.5) / MCD_BANDS
    return np.cos(places[:, None] * np.arange(1, MCD_ORDER + 1)) / MCD_BANDS


def _floor(target: np.ndarray, spec: tuple[int, int, int], bank: np.ndarray | None = None) -> np.ndarray:
    """-80 dB of the largest power, or power in a band, of each signal; (..., 1, 1), NaN for silence."""
    blocks = (power if bank is None else power @ bank for power in _powers(target, spec))
    peak = np.max([power.max(axis=(-2, -1), keepdims=True) for power in blocks], axis=0)
    return np.where(peak > 0, peak * 1e-8, np.nan)


def _powers(wav: np.ndarray, spec: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Power spectra (..., frames, bins), float64, some frames at a time: those of an hour would fill the memory.

    `spec` is the length of a frame, the hop from one to the next, and the length of the transform, in samples.
    """
    frame, hop, n_fft = spec
    window = np.hanning(frame + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(wav, frame, axis=-1)[..., ::hop, :]
    for begin in range(0, frames.shape[-2], FRAMES):
        block = frames[..., begin : begin + FRAMES, :].astype(np.float64)
        yield np.abs(np.fft.rfft(block * window, n_fft)) ** 2


def _centred(wav: np.ndarray) -> np.ndarray:
    """float64 with zero mean over the last axis."""
    wav = wav.astype(np.float64)
    return wav - wav.mean(axis=-1, keepdims=True)
