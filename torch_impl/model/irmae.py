"""The auto-encoder of mel spectrograms in PyTorch; the twin of `jax_impl.model.irmae`.

L. Jing, J. Zbontar and Y. LeCun, "Implicit rank-minimizing autoencoder", 2020: linear maps one after the other
before the latent keep its rank small.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from parivox.enhancer_tables import IRMAE_BLOCKS, IRMAE_DILATIONS, IRMAE_MAPS, NORM_GROUPS
from torch_impl.model.conv import Conv1d
from torch_impl.model.layers import GELU, GroupNorm
from torch_impl.model.normalizer import Normalizer

__all__ = ["IRMAE", "mean_square"]


def _residual(width: int) -> nn.Sequential:
    layers = []
    for dilation in IRMAE_DILATIONS:
        layers += [GroupNorm(NORM_GROUPS, width), GELU(), Conv1d(width, width, 3, dilation, normed=True)]
    return nn.Sequential(*layers)


def _apply(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = x + layer(x) if isinstance(layer, nn.Sequential) else layer(x)
    return x


class IRMAE(nn.Module):
    """Mel spectrogram to latent in [-1, 1], latent to the vocoder's condition, and that to a mel spectrogram."""

    def __init__(self, mels: int, wide: int, latent: int, width: int):
        super().__init__()
        self.encoder = nn.ModuleList(
            [
                Conv1d(mels, width, 3),
                *(_residual(width) for _ in range(IRMAE_BLOCKS)),
                *(Conv1d(latent if i else width, latent, 1, bias=False) for i in range(IRMAE_MAPS)),
            ]
        )
        self.decoder = nn.ModuleList(
            [
                Conv1d(latent, width, 3),
                *(_residual(width) for _ in range(IRMAE_BLOCKS)),
                Conv1d(width, wide, 1),
            ]
        )
        self.head: Any = nn.ModuleList([Conv1d(wide, width, 3), GELU(), Conv1d(width, mels, 1)])
        self.estimator = Normalizer()

    def encode(self, mel: Float[Tensor, "b m n"]) -> Float[Tensor, "b l n"]:
        """The latent."""
        return torch.tanh(self._run(self.encoder, mel))

    def decode(self, latent: Float[Tensor, "b l n"]) -> Float[Tensor, "b w n"]:
        """The vocoder's condition."""
        return self._run(self.decoder, latent)

    def reconstruct(self, decoded: Float[Tensor, "b w n"]) -> Float[Tensor, "b m n"]:
        """The mel spectrogram that the condition stands for; used in training alone."""
        return self._run(self.head, decoded)

    def _run(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        # The nets compute in the dtype of their weights, which may be half precision; what is between does not.
        return _apply(layers, x.to(self.head[0].bias.dtype)).to(x.dtype)


def mean_square(x: Float[Tensor, "b m n"], y: Float[Tensor, "b m n"]) -> Float[Tensor, ""]:
    """Mean square difference."""
    return ((x - y) ** 2).mean()
