"""Speech and noise at one energy, mixed by a weight."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from parivox.audio import peak_normalize

ENERGY_EPS = 1e-7
"""Added to the energy under the root, so that silence stays silence."""


def energy_normalize(wav: Float[np.ndarray, "*b t"]) -> Float[np.ndarray, "*b t"]:
    """Give unit energy: x / sqrt(sum(x^2) + 1e-7) over the last axis."""
    return wav / np.sqrt(np.square(wav).sum(axis=-1, keepdims=True) + ENERGY_EPS)


def mix(
    fg: Float[np.ndarray, "*b t"], bg: Float[np.ndarray, "*b t"], alpha: float | Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b t"]:
    """Mix speech and noise: alpha * fg + (1 - alpha) * bg, peak-normalised.

    Both are peak- and then energy-normalised before.

    The signal-to-noise ratio is 20 * log10(alpha / (1 - alpha)) dB: -12 to 12 dB for alpha in (0.2, 0.8).

    Args:
        fg: speech.
        bg: noise, the same shape and dtype.
        alpha: weight of the speech, 0 to 1; one for all or one for each row.

    Returns:
        The mixture, in the dtype of `fg`.
    """
    weight = np.asarray(alpha, dtype=fg.dtype)[..., None]
    fg, bg = energy_normalize(peak_normalize(fg)), energy_normalize(peak_normalize(bg))
    return peak_normalize(weight * fg + (1 - weight) * bg)
