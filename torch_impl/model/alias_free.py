"""Alias-free periodic activations in PyTorch; the twin of `jax_impl.model.alias_free`.

S. Lee et al., "BigVGAN", 2023: a snake function between a doubling and a halving of the sample rate, each with a
short low-pass filter, so that the tones which it adds beyond the band do not fold back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from parivox.enhancer_tables import AMP_DILATIONS, FILTER_TAPS, SNAKE_RANGE, kaiser_filter
from torch_impl.ends import padded
from torch_impl.in_place import added, may_overwrite
from torch_impl.model.conv import Conv1d
from torch_impl.model.normalizer import Buffer

__all__ = ["AMPBlock", "Activation", "SnakeBeta", "halve", "twice"]

HALF = FILTER_TAPS // 2

BLOCK = 32
"""Samples at the lower rate that one product makes, or takes."""


def twice(x: Float[Tensor, "b c n"], taps: Float[Tensor, " k"]) -> Float[Tensor, "b c m"]:
    """Double the sample rate; the ends are repeated. Even and odd samples each take every other tap."""
    wide = padded(x, HALF // 2, HALF // 2, "replicate")
    backwards = 2 * taps.flip(0)
    phases = torch.stack([F.pad(backwards[::2], (0, 1)), F.pad(backwards[1::2], (1, 0))])
    return _filtered(wide, phases, BLOCK)[..., : 2 * x.shape[-1]]


def halve(x: Float[Tensor, "b c m"], taps: Float[Tensor, " k"]) -> Float[Tensor, "b c n"]:
    """Halve the sample rate of an even number of samples; the ends are repeated."""
    wide = padded(x, HALF - 1, HALF, "replicate")
    return _filtered(wide, taps[None], 2 * BLOCK, step=2)[..., : x.shape[-1] // 2]


def _filtered(
    x: Float[Tensor, "b c n"], filters: Float[Tensor, "p k"], block: int, step: int = 1
) -> Float[Tensor, "b c m"]:
    """Samples from each of the filters in turn, then the same one step on; to the end of x and some beyond.

    A matrix with the filters along its diagonal makes a block of samples at a time: most of it is zeros, and yet
    the product takes a tenth of the time of a convolution of one channel.
    """
    (phases, taps), steps = filters.shape, block // step
    width = block - step + taps
    matrix = filters.new_zeros(steps, phases, width)
    matrix.as_strided((steps, phases, taps), (phases * width + step, width, 1)).copy_(
        filters.expand(steps, -1, -1)
    )
    blocks = -(-(x.shape[-1] - taps + step) // block)
    x = F.pad(x, (0, (blocks - 1) * block + width - x.shape[-1]))
    return (x.unfold(-1, width, block) @ matrix.flatten(0, 1).T).flatten(-2)


class SnakeBeta(nn.Module):
    """x + sin^2(alpha x) / beta, alpha and beta of each channel kept as logarithms."""

    def __init__(self, channels: int):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.zeros(channels))
        self.log_beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c n"], spare: bool = False) -> Float[Tensor, "b c n"]:
        """Apply the activation.

        Args:
            x: at any rate.
            spare: x is not needed any more; without gradients the result takes its place.
        """
        alpha = self.log_alpha.exp().clamp(*SNAKE_RANGE)[:, None]
        beta = self.log_beta.exp().clamp(*SNAKE_RANGE)[:, None]
        if spare and may_overwrite(x, alpha):
            return x.addcmul_((alpha * x).sin_().square_(), 1 / beta)
        sine = torch.sin(alpha * x)
        return torch.addcmul(x, sine, sine / beta)


class _Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = Buffer(torch.tensor(kaiser_filter()[None, None], dtype=torch.get_default_dtype()))


class _LowPass(nn.Module):
    # Named as the public checkpoint names it.
    def __init__(self):
        super().__init__()
        self.lowpass = _Filter()


class Activation(nn.Module):
    """SnakeBeta at twice the sample rate."""

    def __init__(self, channels: int):
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample = _Filter()
        self.downsample = _LowPass()

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        """Apply the activation."""
        filters = self.upsample.filter, self.downsample.lowpass.filter
        up, down = (taps[0, 0].to(x.dtype) for taps in filters)
        return halve(self.act(twice(x, up), spare=True), down)


class AMPBlock(nn.ModuleList):
    """Three layers of a dilated convolution, the activation and another convolution; one residual around them."""

    def __init__(self, channels: int):
        super().__init__(
            nn.ModuleList(
                [
                    Conv1d(channels, channels, 3, dilation, normed=True),
                    Activation(channels),
                    Conv1d(channels, channels, 3, normed=True),
                ]
            )
            for dilation in AMP_DILATIONS
        )

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        """Run the layers."""
        y = x
        layers: Any = self
        for first, activation, last in layers:
            y = last(activation(first(y)))
        return added(y, x)
