"""Alias-free periodic activations in JAX; the twin of `torch_impl.model.alias_free`.

S. Lee et al., "BigVGAN", 2023: a snake function between a doubling and a halving of the sample rate, each with a
short low-pass filter, so that the tones which it adds beyond the band do not fold back.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.ends import padded
from jax_impl.model.conv import Conv1d
from jax_impl.model.normalizer import Buffer
from jax_impl.precision import spread
from parivox.enhancer_tables import AMP_DILATIONS, FILTER_TAPS, SNAKE_RANGE, kaiser_filter

__all__ = ["AMPBlock", "Activation", "SnakeBeta", "halve", "twice"]

HALF = FILTER_TAPS // 2


def twice(x: Float[Array, "b n c"], taps: Float[Array, " k"]) -> Float[Array, "b m c"]:
    """Double the sample rate; the ends are repeated. Even and odd samples each take every other tap."""
    b, n, c = x.shape
    wide = padded(x, HALF // 2, HALF // 2, "edge")
    parts = [wide[:, k : k + n] for k in range(HALF + 1)]
    even = sum(2 * taps[FILTER_TAPS - 1 - 2 * k] * parts[k] for k in range(HALF))
    odd = sum(2 * taps[FILTER_TAPS - 2 - 2 * k] * parts[k + 1] for k in range(HALF))
    return jnp.stack([even, odd], axis=2).reshape(b, 2 * n, c)


def halve(x: Float[Array, "b m c"], taps: Float[Array, " k"]) -> Float[Array, "b n c"]:
    """Halve the sample rate of an even number of samples; the ends are repeated."""
    b, m, c = x.shape
    pairs = padded(x, HALF - 1, HALF + 1, "edge").reshape(b, m // 2 + HALF, 2, c)
    parts = [pairs[:, k : k + m // 2, phase] for k in range(HALF) for phase in range(2)]
    return sum((taps[k] * part for k, part in enumerate(parts[1:], 1)), taps[0] * parts[0])


class SnakeBeta(nnx.Module):
    """x + sin^2(alpha x) / beta, alpha and beta of each channel kept as logarithms."""

    def __init__(self, channels: int):
        self.log_alpha = nnx.Param(jnp.zeros((channels,)))
        self.log_beta = nnx.Param(jnp.zeros((channels,)))

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Apply the activation."""
        alpha = spread(jnp.clip(jnp.exp(self.log_alpha[...]), *SNAKE_RANGE), x.shape)
        beta = spread(jnp.clip(jnp.exp(self.log_beta[...]), *SNAKE_RANGE), x.shape)
        return x + jnp.sin(alpha * x) ** 2 / beta


class _Filter(nnx.Module):
    def __init__(self):
        self.filter = Buffer(jnp.asarray(kaiser_filter()[None, None], jnp.zeros(()).dtype))


class _LowPass(nnx.Module):
    # Named as the public checkpoint names it.
    def __init__(self):
        self.lowpass = _Filter()


class Activation(nnx.Module):
    """SnakeBeta at twice the sample rate."""

    def __init__(self, channels: int):
        self.act = SnakeBeta(channels)
        self.upsample = _Filter()
        self.downsample = _LowPass()

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Apply the activation."""
        filters = self.upsample.filter, self.downsample.lowpass.filter
        up, down = (taps[...][0, 0].astype(x.dtype) for taps in filters)
        return halve(self.act(twice(x, up)), down)


class AMPBlock(nnx.List):
    """Three layers of a dilated convolution, the activation and another convolution; one residual around them."""

    def __init__(self, channels: int):
        super().__init__(
            nnx.List(
                [
                    Conv1d(channels, channels, 3, dilation, normed=True),
                    Activation(channels),
                    Conv1d(channels, channels, 3, normed=True),
                ]
            )
            for dilation in AMP_DILATIONS
        )

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Run the layers."""
        y = x
        for first, activation, last in self:
            y = last(activation(first(y)))
        return x + y
