"""What the first stage's latent says about the factor that the second one scales it by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

VARIANCE = "lcfm.ae.estimator.running_var_unsafe"
"""Name of the running variance of the latent."""


def suggested_z_scale(weights: Mapping[str, np.ndarray]) -> float | None:
    """The `lcfm_z_scale` that gives the latent the variance of the prior's noise, which is 1.

    The flow leads from a mixture of noise and scaled latent to the scaled latent; where both have one size, neither
    drowns the other.

    Args:
        weights: of the enhancer, with its running statistics.

    Returns:
        1 / standard deviation; None before the first update, or where the latent does not vary at all.
    """
    variance = float(weights[VARIANCE])
    return 1 / float(np.sqrt(variance)) if np.isfinite(variance) and variance > 0 else None


def latent_advice(weights: Mapping[str, np.ndarray]) -> str:
    """One line for the end of the first stage."""
    scale = suggested_z_scale(weights)
    if scale is None:
        return "the latent does not vary: the auto-encoder has learned nothing yet; train on"
    return (
        f"the latent's standard deviation is {1 / scale:.3g}: for the second stage --lcfm-z-scale {two_digits(scale)}"
        " gives it that of the noise"
    )


def two_digits(number: float) -> str:
    """A positive number to two digits, as people write it: 0.12, 8.5, 120."""
    return f"{float(f'{number:.1e}'):.10g}"
