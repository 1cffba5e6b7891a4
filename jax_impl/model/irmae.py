"""The auto-encoder of mel spectrograms in JAX; the twin of `torch_impl.model.irmae`.

L. Jing, J. Zbontar and Y. LeCun, "Implicit rank-minimizing autoencoder", 2020: linear maps one after the other
before the latent keep its rank small.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.model.conv import Conv1d
from jax_impl.model.layers import GELU, GroupNorm
from jax_impl.model.normalizer import Normalizer
from jax_impl.precision import total
from parivox.enhancer_tables import IRMAE_BLOCKS, IRMAE_DILATIONS, IRMAE_MAPS, NORM_GROUPS

__all__ = ["IRMAE", "mean_square"]


def _residual(width: int) -> nnx.List:
    layers = []
    for dilation in IRMAE_DILATIONS:
        layers += [GroupNorm(NORM_GROUPS, width), GELU(), Conv1d(width, width, 3, dilation, normed=True)]
    return nnx.List(layers)


def _apply(layers: nnx.List, x: Array) -> Array:
    for layer in layers:
        x = x + _apply(layer, x) if isinstance(layer, nnx.List) else layer(x)
    return x


class IRMAE(nnx.Module):
    """Mel spectrogram to latent in [-1, 1], latent to the vocoder's condition, and that to a mel spectrogram."""

    def __init__(self, mels: int, wide: int, latent: int, width: int):
        self.encoder = nnx.List(
            [
                Conv1d(mels, width, 3),
                *(_residual(width) for _ in range(IRMAE_BLOCKS)),
                *(Conv1d(latent if i else width, latent, 1, bias=False) for i in range(IRMAE_MAPS)),
            ]
        )
        self.decoder = nnx.List(
            [
                Conv1d(latent, width, 3),
                *(_residual(width) for _ in range(IRMAE_BLOCKS)),
                Conv1d(width, wide, 1),
            ]
        )
        self.head: Any = nnx.List([Conv1d(wide, width, 3), GELU(), Conv1d(width, mels, 1)])
        self.estimator = Normalizer()

    def encode(self, mel: Float[Array, "b n m"]) -> Float[Array, "b n l"]:
        """The latent."""
        return jnp.tanh(self._run(self.encoder, mel))

    def decode(self, latent: Float[Array, "b n l"]) -> Float[Array, "b n w"]:
        """The vocoder's condition."""
        return self._run(self.decoder, latent)

    def reconstruct(self, decoded: Float[Array, "b n w"]) -> Float[Array, "b n m"]:
        """The mel spectrogram that the condition stands for; used in training alone."""
        return self._run(self.head, decoded)

    def _run(self, layers: nnx.List, x: Array) -> Array:
        # The nets compute in the dtype of their weights, which may be half precision; what is between does not.
        return _apply(layers, x.astype(self.head[0].bias[...].dtype)).astype(x.dtype)


def mean_square(x: Float[Array, "b n m"], y: Float[Array, "b n m"]) -> Float[Array, ""]:
    """Mean square difference."""
    return total((x - y) ** 2).reshape(()) / x.size
