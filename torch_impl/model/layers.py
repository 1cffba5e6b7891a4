"""Layers of the UNet in PyTorch; the twin of `jax_impl.model.layers`.

Images are (b, c, f, n). Weights keep the public names and shapes (out, in, kernel...).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_impl.ends import ends, kept

__all__ = ["Conv2d", "GELU", "GroupNorm", "downsample", "upsample"]


class Conv2d(nn.Conv2d):
    """Stride-1 2-D convolution with zero padding that keeps the size; odd square kernels."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int):
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "b i f n"]) -> Float[Tensor, "b o f n"]:
        """Convolve an image."""
        return super().forward(kept(x))


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He, 2018), eps 1e-5, variance from the centred values."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5):
        super().__init__(groups, channels, eps=eps)

    def forward(self, x: Float[Tensor, "b c *n"]) -> Float[Tensor, "b c *n"]:
        """Normalise over the channels of a group, frequency and frames; also without an axis of frequency."""
        last = ends(x.shape[-1])
        if last is None:
            return super().forward(x)
        shape = x.shape[0], self.num_groups, -1, x.shape[-1]  # which an exporter can follow; len(x) it cannot
        values = kept(x).reshape(shape)
        count = (values.shape[2] * last)[:, None, None, None]
        centred = kept((values - _total(values) / count).reshape(x.shape)).reshape(shape)
        variance = _total(centred**2) / count
        y = (centred * torch.rsqrt(variance + self.eps)).reshape(x.shape)
        weight, bias = (part.reshape(-1, *(1,) * (x.ndim - 2)) for part in (self.weight, self.bias))
        return y * weight + bias


def _total(x: Float[Tensor, "b g m n"]) -> Float[Tensor, "b g 1 1"]:
    # In two stages: onnxruntime adds one number after another, which over a million of them leaves four digits.
    return x.sum(-1, keepdim=True).sum(-2, keepdim=True)


class GELU(nn.GELU):
    """x * Phi(x) with the exact error function."""

    def __init__(self):
        super().__init__(approximate="none")


def downsample(x: Float[Tensor, "b c f n"]) -> Float[Tensor, "b c f2 n2"]:
    """Nearest x 1/2: keeps even rows and columns."""
    return x[:, :, ::2, ::2]


def upsample(x: Float[Tensor, "b c f n"]) -> Float[Tensor, "b c f2 n2"]:
    """Nearest x 2."""
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")
