"""The velocity net of the latent flow in JAX; the twin of `torch_impl.model.wn`.

A. van den Oord et al., "WaveNet", 2016: dilated convolutions with gates, residuals and skips, here over frames
and without causality.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.ends import ends, kept
from jax_impl.model.conv import Conv1d
from jax_impl.precision import spread, total
from parivox.enhancer_tables import TIME_WIDTH, WN_CYCLE

__all__ = ["WN", "WNLayer", "instance_norm"]


def instance_norm(x: Float[Array, "b n c"], eps: float = 1e-5) -> Float[Array, "b n c"]:
    """Each channel of each item with mean 0 and (biased) variance 1 over the frames."""
    last = ends(x.shape[1])
    count = x.shape[1] if last is None else last[:, None, None]
    centred = kept(x - spread(total(kept(x), (1,)) / count, x.shape))
    return centred * spread(jax.lax.rsqrt(total(centred**2, (1,)) / count + eps), x.shape)


class WNLayer(nnx.Module):
    """One gated convolution."""

    def __init__(self, width: int, mels: int, dilation: int):
        self.gconv = Conv1d(TIME_WIDTH, width, 1)
        self.lconv = Conv1d(mels, 2 * width, 1)
        self.dconv = Conv1d(width, 2 * width, 3, dilation)
        self.out = Conv1d(width, 2 * width, 1)

    def __call__(
        self, z: Float[Array, "b n c"], time: Float[Array, "b 1 e"], local: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b n c"]]:
        """The residual output and the skip."""
        gates = self.dconv(z + spread(self.gconv(time), z.shape)) + local
        tanh, sigmoid = jnp.split(gates, 2, axis=-1)
        residual, skip = jnp.split(self.out(jnp.tanh(tanh) * jax.nn.sigmoid(sigmoid)), 2, axis=-1)
        return (residual + z) / math.sqrt(2), skip


class WN(nnx.Module):
    """Velocity of a latent at a time, under a mel spectrogram."""

    def __init__(self, latent: int, mels: int, width: int, layers: int):
        self.start = Conv1d(latent, width, 1)
        self.layers = nnx.List([WNLayer(width, mels, 2 ** (i % WN_CYCLE)) for i in range(layers)])
        self.end = Conv1d(width, latent, 1)

    def conditions(self, mel: Float[Array, "b n m"]) -> list[Float[Array, "b n d"]]:
        """What each layer makes of the condition; it does not change along the flow."""
        mel = instance_norm(mel).astype(self.start.bias[...].dtype)
        return [layer.lconv(mel) for layer in self.layers]

    def __call__(
        self, psi: Float[Array, "b n l"], time: Float[Array, "b e"], conditions: list[Float[Array, "b n d"]]
    ) -> Float[Array, "b n l"]:
        """The velocity, from an embedding of the time and what `conditions` gave."""
        # The net computes in the dtype of its weights, which may be half precision; the flow does not.
        dtype = self.start.bias[...].dtype
        z, time = self.start(psi.astype(dtype)), time.astype(dtype)
        skips = jnp.zeros_like(z)
        for layer, local in zip(self.layers, conditions, strict=True):
            z, skip = layer(z, time[:, None], local)
            skips = skips + skip
        return self.end(skips / math.sqrt(len(self.layers))).astype(psi.dtype)
