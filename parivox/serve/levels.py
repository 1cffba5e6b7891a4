"""How loud a recording is: peak, mean power and loudness.

Loudness is that of ITU-R BS.1770-5, with its two gates: the number that broadcasters and players go by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

BLOCK_STEPS = 4
"""A gating block of 400 ms in steps of 100 ms: blocks overlap by three quarters."""

ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0
"""LUFS, and LU below the mean of what passes the first gate."""

OFFSET = -0.691
"""LUFS; so a full-scale sine of 997 Hz in one channel has -3.01."""


@dataclass(frozen=True)
class Levels:
    """Levels of a recording; None where it is silent, or too short for its loudness.

    Attributes:
        peak: of any sample and channel, dB relative to full scale.
        rms: mean power over all channels, dB relative to full scale (a square wave of full scale has 0).
        loudness: LUFS.
    """

    peak: float | None
    rms: float | None
    loudness: float | None


def measure(wav: Float[np.ndarray, "c t"], rate: int) -> Levels:
    """Levels of samples (c, t) with full scale -1 to 1; every channel counts the same."""
    peak = float(np.abs(wav).max())
    power = float(np.mean([np.mean(np.square(row, dtype=np.float64)) for row in wav]))
    return Levels(_decibels(peak**2), _decibels(power), loudness(wav, rate))


def loudness(wav: Float[np.ndarray, "c t"], rate: int) -> float | None:
    """Integrated loudness in LUFS; None for what is shorter than 400 ms, or nowhere above -70 LUFS."""
    steps = sum(_step_powers(row, rate) for row in wav)
    if not isinstance(steps, np.ndarray) or steps.size < BLOCK_STEPS:
        return None
    blocks = np.convolve(steps, np.full(BLOCK_STEPS, 1 / BLOCK_STEPS), "valid")
    loud = blocks[blocks > _power(ABSOLUTE_GATE)]
    if not loud.size:
        return None
    gate = loud.mean() * 10 ** (RELATIVE_GATE / 10)
    return OFFSET + 10 * math.log10(loud[loud > gate].mean())


def _step_powers(row: Float[np.ndarray, "t"], rate: int) -> Float[np.ndarray, "n"]:
    """Mean power of each 100 ms after the K filter; a rest that fills no step is left out."""
    from scipy.signal import sosfilt

    sections = k_filter(rate)
    state = np.zeros((len(sections), 2))
    step = max(1, round(rate / 10))
    powers = []
    for begin in range(0, row.size - row.size % step, 100 * step):  # 10 s at a time, for the sake of memory
        end = min(begin + 100 * step, row.size - row.size % step)
        out, state = sosfilt(sections, row[begin:end].astype(np.float64), zi=state)
        powers.append(np.square(out).reshape(-1, step).mean(axis=1))
    return np.concatenate(powers) if powers else np.zeros(0)


def k_filter(rate: int) -> Float[np.ndarray, "2 6"]:
    """The standard's shelf and high-pass at any rate, as second-order sections.

    By the bilinear transform, from the analogue prototypes behind the coefficients that the standard gives for 48 kHz
    (Mansbridge, Finn and Reiss, 2012, "Implementation and Evaluation of Autonomous Multi-track Fader Control").
    """
    q, gain = 0.7071752369554193, 10 ** (3.99984385397 / 20)
    k = math.tan(math.pi * 1681.9744509555319 / rate) if rate > 2 * 1681.98 else math.inf
    shelf = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]  # below that rate nothing of the shelf is left
    if math.isfinite(k):
        a0, lift = 1 + k / q + k * k, gain**0.499666774155
        shelf = [
            (gain + lift * k / q + k * k) / a0,
            2 * (k * k - gain) / a0,
            (gain - lift * k / q + k * k) / a0,
            1.0,
            2 * (k * k - 1) / a0,
            (1 - k / q + k * k) / a0,
        ]
    q = 0.5003270373253953
    k = math.tan(math.pi * min(38.13547087613982 / rate, 0.4))
    a0 = 1 + k / q + k * k
    highpass = [1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]
    return np.array([shelf, highpass])


def _power(lufs: float) -> float:
    return 10 ** ((lufs - OFFSET) / 10)


def _decibels(power: float) -> float | None:
    return 10 * math.log10(power) if power > 0 else None
