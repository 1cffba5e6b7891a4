"""The velocity net of the latent flow in PyTorch; the twin of `jax_impl.model.wn`.

A. van den Oord et al., "WaveNet", 2016: dilated convolutions with gates, residuals and skips, here over frames
and without causality.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from parivox.enhancer_tables import TIME_WIDTH, WN_CYCLE
from torch_impl.ends import ends, kept
from torch_impl.in_place import added, gated
from torch_impl.model.conv import Conv1d

__all__ = ["WN", "WNLayer", "instance_norm"]


def instance_norm(x: Float[Tensor, "b c n"], eps: float = 1e-5) -> Float[Tensor, "b c n"]:
    """Each channel of each item with mean 0 and (biased) variance 1 over the frames."""
    last = ends(x.shape[-1])
    count = x.shape[-1] if last is None else last[:, None, None]
    centred = kept(x - kept(x).sum(-1, keepdim=True) / count)
    return centred * torch.rsqrt((centred**2).sum(-1, keepdim=True) / count + eps)


class WNLayer(nn.Module):
    """One gated convolution."""

    def __init__(self, width: int, mels: int, dilation: int):
        super().__init__()
        self.gconv = Conv1d(TIME_WIDTH, width, 1)
        self.lconv = Conv1d(mels, 2 * width, 1)
        self.dconv = Conv1d(width, 2 * width, 3, dilation)
        self.out = Conv1d(width, 2 * width, 1)

    def forward(
        self, z: Float[Tensor, "b c n"], time: Float[Tensor, "b e 1"], local: Float[Tensor, "b d n"]
    ) -> tuple[Float[Tensor, "b c n"], Float[Tensor, "b c n"]]:
        """The residual output and the skip."""
        tanh, sigmoid = added(self.dconv(z + self.gconv(time)), local).chunk(2, dim=1)
        residual, skip = self.out(gated(tanh, sigmoid)).chunk(2, dim=1)
        return added(residual, z) / math.sqrt(2), skip


class WN(nn.Module):
    """Velocity of a latent at a time, under a mel spectrogram."""

    def __init__(self, latent: int, mels: int, width: int, layers: int):
        super().__init__()
        self.start = Conv1d(latent, width, 1)
        self.layers: Any = nn.ModuleList([WNLayer(width, mels, 2 ** (i % WN_CYCLE)) for i in range(layers)])
        self.end = Conv1d(width, latent, 1)

    def conditions(self, mel: Float[Tensor, "b m n"]) -> list[Float[Tensor, "b d n"]]:
        """What each layer makes of the condition; it does not change along the flow."""
        mel = instance_norm(mel).to(self.start.bias.dtype)
        return [layer.lconv(mel) for layer in self.layers]

    def forward(
        self,
        psi: Float[Tensor, "b l n"],
        time: Float[Tensor, "b e"],
        conditions: list[Float[Tensor, "b d n"]],
    ) -> Float[Tensor, "b l n"]:
        """The velocity, from an embedding of the time and what `conditions` gave."""
        # The net computes in the dtype of its weights, which may be half precision; the flow does not.
        dtype = self.start.bias.dtype
        z, time = self.start(psi.to(dtype)), time.to(dtype)
        skips = torch.zeros_like(z)
        for layer, local in zip(self.layers, conditions, strict=True):
            z, skip = layer(z, time[:, :, None], local)
            skips = added(skips, skip)
        return self.end(skips / math.sqrt(len(self.layers))).to(psi.dtype)
