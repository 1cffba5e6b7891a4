"""The random numbers of a training step of the enhancer: drawn here, so that no backend owns a generator."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from parivox.enhancer_tables import TAIL, VOCODER_NOISE
from parivox.errors import ConfigError
from parivox.hparams import EnhancerHParams

BLEND = (0.2, 0.2)
"""Parameters of the Beta distribution of the denoised share in the flow's condition: mostly near 0 or near 1."""

MIN_SAMPLES = 2048
"""Shortest item: the discriminator's longest window."""


def item_samples(hp: EnhancerHParams) -> int:
    """Samples of an item: `training_seconds`, rounded down to whole frames, which is what the vocoder makes.

    Raises:
        ConfigError: that is too short for the discriminator.
    """
    samples = round(hp.training_seconds * hp.wav_rate) // hp.hop_size * hp.hop_size
    if samples < MIN_SAMPLES:
        raise ConfigError(
            f"training_seconds is {hp.training_seconds}, {samples // hp.hop_size} frames of {hp.hop_size} samples; the"
            f" enhancer's discriminator needs at least {MIN_SAMPLES} samples, so use 0.05 or more"
        )
    return samples


def vocoder_noise(frames: int, rng: np.random.Generator) -> Float[np.ndarray, "z n"]:
    """What the vocoder begins with: normal, with its tail of frames after the sound's own, float32."""
    return rng.standard_normal((VOCODER_NOISE, frames + TAIL), dtype=np.float32)


def flow_draws(hp: EnhancerHParams, frames: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The draws of `FlowDraws`, without a batch axis, float32.

    Returns:
        `blend` (share of the denoised spectrogram, Beta(0.2, 0.2)), `tau` (share of noise in the prior) and `time`
        (of the flow, before its map), uniform in [0, 1); `prior` and `sigma` (l, n), normal.
    """
    shape = (hp.lcfm_latent_dim, frames)
    return {
        "blend": np.array(rng.beta(*BLEND), np.float32),
        "tau": np.array(rng.random(dtype=np.float32), np.float32),
        "prior": rng.standard_normal(shape, dtype=np.float32),
        "sigma": rng.standard_normal(shape, dtype=np.float32),
        "time": np.array(rng.random(dtype=np.float32), np.float32),
    }
