"""Running mean and variance of the mel spectrogram in JAX; the twin of `torch_impl.model.normalizer`."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.precision import total
from parivox.enhancer_tables import NORMALIZER_EPS, NORMALIZER_MOMENTUM

__all__ = ["Buffer", "Normalizer", "update_statistics"]

Statistics = tuple[Float[Array, ""], Float[Array, ""]]


class Buffer(nnx.Variable):
    """An array with a public name that no optimizer changes."""


class Normalizer(nnx.Module):
    """(x - mean) / sqrt(variance + 1e-9) with running scalars, NaN until first measured."""

    def __init__(self):
        self.running_mean_unsafe = Buffer(jnp.full((), jnp.nan))
        self.running_var_unsafe = Buffer(jnp.full((), jnp.nan))

    def statistics(self) -> Statistics:
        """Running mean and variance."""
        return self.running_mean_unsafe[...], self.running_var_unsafe[...]

    def __call__(self, x: Float[Array, "..."], statistics: Statistics | None = None) -> Float[Array, "..."]:
        """Normalise with these statistics, or with the module's own; with mean 0 and scale 1 before any."""
        mean, variance = self.statistics() if statistics is None else statistics
        unused = jnp.isnan(mean)
        scale = jnp.where(unused, 1, jnp.sqrt(jnp.where(unused, 1, variance) + NORMALIZER_EPS))
        return (x - jnp.where(unused, 0, mean)) / scale


def update_statistics(statistics: Statistics, x: Float[Array, "..."]) -> Statistics:
    """The statistics after a training batch.

    The first batch gives its mean and unbiased variance. Later ones move the mean by a hundredth, then the variance
    by a hundredth towards the mean square distance from the new mean.
    """
    mean, variance = statistics
    unused = jnp.isnan(mean)
    own = total(x).reshape(()) / x.size
    moved = jnp.where(unused, own, (1 - NORMALIZER_MOMENTUM) * mean + NORMALIZER_MOMENTUM * own)
    square = total((x - moved) ** 2).reshape(())
    later = (1 - NORMALIZER_MOMENTUM) * variance + NORMALIZER_MOMENTUM * (square / x.size)
    return moved, jnp.where(unused, square / (x.size - 1), later)
