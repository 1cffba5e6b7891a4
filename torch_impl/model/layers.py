"""Layers of the UNet in PyTorch; the twin of `jax_impl.model.layers`.

Images are (b, c, f, n), whose channels may lie last in memory. Weights keep the public names and shapes
(out, in, kernel...).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_impl.ends import ends, kept

__all__ = ["Conv2d", "GELU", "GroupNorm", "downsample", "upsample"]

CHAIN = 2048
"""Values that a norm of an image with channels last adds one after another; their sums are added in a tree."""


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

    def forward(self, x: Float[Tensor, "b c *n"], spare: bool = False) -> Float[Tensor, "b c *n"]:
        """Normalise over the channels of a group, frequency and frames; also without an axis of frequency.

        Args:
            x: to be normalised.
            spare: x is not needed any more, and the result may take its place.
        """
        last = ends(x.shape[-1])
        if last is None:
            return self._channels_last(x, spare) if _has_channels_last(x) else super().forward(x)
        shape = x.shape[0], self.num_groups, -1, x.shape[-1]  # which an exporter can follow; len(x) it cannot
        values = kept(x).reshape(shape)
        count = (values.shape[2] * last)[:, None, None, None]
        centred = kept((values - _total(values) / count).reshape(x.shape)).reshape(shape)
        variance = _total(centred**2) / count
        y = (centred * torch.rsqrt(variance + self.eps)).reshape(x.shape)
        weight, bias = (part.reshape(-1, *(1,) * (x.ndim - 2)) for part in (self.weight, self.bias))
        return y * weight + bias

    def _channels_last(self, x: Float[Tensor, "b c f n"], spare: bool) -> Float[Tensor, "b c f n"]:
        # torch's own kernel takes E[x^2] - E[x]^2 of such an image, and adds one pixel after another.
        moments = [_moments(image.permute(1, 2, 0), self.num_groups) for image in x]
        mean, variance = (
            torch.stack(part).repeat_interleave(self.num_channels // self.num_groups, dim=1)
            for part in zip(*moments, strict=True)
        )
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shift = self.bias - mean * scale
        out = x if spare else None
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None], out=out)


def _has_channels_last(x: Tensor) -> bool:
    image = x.ndim == 4 and not x.is_contiguous() and not torch.is_grad_enabled()
    return image and x.is_contiguous(memory_format=torch.channels_last)


def _moments(image: Float[Tensor, "f n c"], groups: int) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"]]:
    """Mean and variance of each group, the variance from the centred values."""
    pixels = image.reshape(-1, image.shape[-1])
    chain = min(len(pixels), CHAIN)
    side = len(pixels) // chain  # so many pixels are taken for one with as many more channels
    means, variances = (
        part.reshape(side, groups, -1)
        for part in torch.batch_norm_update_stats(
            pixels[: chain * side].reshape(chain, -1), None, None, momentum=0.0
        )
    )
    rest, count = pixels[chain * side :].reshape(-1, groups, means.shape[-1]), image.numel() // groups
    mean = (chain * means.sum((0, 2)) + rest.sum((0, 2))) / count
    spread = variances + (means - mean[:, None]) ** 2
    variance = (chain * spread.sum((0, 2)) + ((rest - mean[:, None]) ** 2).sum((0, 2))) / count
    return mean, variance


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
