"""The multi-resolution STFT loss in JAX; the twin of `torch_impl.model.mrstft`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_impl.features import frame, spectra
from jax_impl.precision import total
from parivox.features import hann_window, padded_window

__all__ = ["magnitudes", "mrstft_loss"]


def magnitudes(
    x: Float[Array, "b t"], window: Float[np.ndarray, " n_fft"], hop: int
) -> Float[Array, "b f n"]:
    """Magnitude spectrogram without padding: f = n_fft // 2 + 1, n = 1 + (t - n_fft) // hop.

    The gradient of a magnitude of 0 is 0.
    """
    return jnp.abs(spectra(frame(x, len(window), hop), window).swapaxes(1, 2))


def mrstft_loss(
    output: Float[Array, "b t"], target: Float[Array, "b t"], stft_cfgs: Sequence[Mapping[str, int]]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Spectral convergence and distance of log magnitudes, each averaged over the resolutions.

    R. Yamamoto et al., "Parallel WaveGAN", 2020, but for log(1 + magnitude). X is the output's, Y the target's
    magnitude, of a centred STFT with a periodic Hann window and reflected ends. The convergence is |Y - X| / |Y|,
    the norms over the whole batch. It is not finite where all of the target is silent.

    Args:
        output: what is judged.
        target: what it should be.
        stft_cfgs: `HParams.stft_cfgs`.

    Returns:
        Spectral convergence, mean |log1p(X) - log1p(Y)|.

    Raises:
        ValueError: reflection needs more than n_fft // 2 samples.
    """
    convergence, distance = [], []
    for cfg in stft_cfgs:
        x, y = _hann_magnitudes(output, cfg), _hann_magnitudes(target, cfg)
        convergence.append(_norm(y - x) / _norm(y))
        distance.append(total(_absolute(jnp.log1p(x) - jnp.log1p(y))).reshape(()) / x.size)
    count = len(stft_cfgs)
    return sum(convergence[1:], convergence[0]) / count, sum(distance[1:], distance[0]) / count


def _hann_magnitudes(x: Array, cfg: Mapping[str, int]) -> Array:
    half = cfg["n_fft"] // 2
    if x.shape[-1] <= half:
        raise ValueError(f"reflect padding needs more than {half} samples, got {x.shape[-1]}")
    window = padded_window(hann_window(cfg["win_length"]), cfg["n_fft"])
    return magnitudes(jnp.pad(x, ((0, 0), (half, half)), mode="reflect"), window, cfg["hop_length"])


def _absolute(x: Array) -> Array:
    """|x| of real numbers with a gradient of 0 at 0, as torch has it; that of `jnp.abs` is 1."""
    return jnp.where(x == 0, 0, jnp.abs(x))


def _norm(x: Array) -> Array:
    """L2 norm of all values. Its gradient at 0 is 0; that of a plain square root is NaN."""
    square = total(x**2).reshape(())
    empty = square == 0
    return jnp.where(empty, 0, jax.lax.sqrt(jnp.where(empty, 1, square)))
