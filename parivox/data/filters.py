"""Second-order filters and overdrive, on float64 arrays."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy import signal


def peaking(freq: float, q: float, gain_db: float, rate: int) -> Float[np.ndarray, "1 6"]:
    """Peaking equaliser at `freq` Hz as one second-order section.

    Source: R. Bristow-Johnson, Audio EQ Cookbook, `peakingEQ`.
    """
    cos, alpha = _cookbook(freq, q, rate)
    a = 10 ** (gain_db / 40)
    return _section((1 + alpha * a, -2 * cos, 1 - alpha * a), (1 + alpha / a, -2 * cos, 1 - alpha / a))


def low_pass(freq: float, q: float, rate: int) -> Float[np.ndarray, "1 6"]:
    """Low-pass at `freq` Hz, gain 1 at 0 Hz. Source: Audio EQ Cookbook, `LPF`."""
    cos, alpha = _cookbook(freq, q, rate)
    return _section(((1 - cos) / 2, 1 - cos, (1 - cos) / 2), (1 + alpha, -2 * cos, 1 - alpha))


def band_pass(freq: float, q: float, rate: int) -> Float[np.ndarray, "1 6"]:
    """Band-pass around `freq` Hz, peak gain 1. Source: Audio EQ Cookbook, `BPF`, constant 0 dB peak gain."""
    cos, alpha = _cookbook(freq, q, rate)
    return _section((alpha, 0.0, -alpha), (1 + alpha, -2 * cos, 1 - alpha))


def apply(sections: Float[np.ndarray, "s 6"], wav: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    """Filter from rest; (t,) to (t,)."""
    return np.asarray(signal.sosfilt(sections, wav))


def overdrive(wav: Float[np.ndarray, " t"], gain_db: float, colour: float) -> Float[np.ndarray, " t"]:
    """Non-linear distortion, as SoX's `overdrive gain colour` describes it.

    d = x * 10^(gain/20) + colour/200 is bent by d - d^3/3 and held at +-2/3 beyond +-1; a DC blocker
    y[t] = d[t] - d[t-1] + 0.995 y[t-1] follows; the result is x/2 + 3y/4, held within +-1.
    """
    driven = np.clip(wav * 10 ** (gain_db / 20) + colour / 200, -1, 1)
    bent = driven - driven**3 / 3
    unbiased = np.asarray(signal.lfilter([1.0, -1.0], [1.0, -0.995], bent))
    return np.clip(0.5 * wav + 0.75 * unbiased, -1, 1)


def _cookbook(freq: float, q: float, rate: int) -> tuple[float, float]:
    angle = 2 * math.pi * freq / rate
    return math.cos(angle), math.sin(angle) / (2 * q)


def _section(b: tuple[float, float, float], a: tuple[float, float, float]) -> Float[np.ndarray, "1 6"]:
    return np.array([[*b, *a]]) / a[0]
