"""Running mean and variance of the mel spectrogram in PyTorch; the twin of `jax_impl.model.normalizer`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from parivox.enhancer_tables import NORMALIZER_EPS, NORMALIZER_MOMENTUM

__all__ = ["Buffer", "Normalizer", "update_statistics"]

Statistics = tuple[Float[Tensor, ""], Float[Tensor, ""]]


Buffer = nn.Buffer
"""An array with a public name that no optimizer changes."""


class Normalizer(nn.Module):
    """(x - mean) / sqrt(variance + 1e-9) with running scalars, NaN until first measured."""

    def __init__(self):
        super().__init__()
        self.running_mean_unsafe = Buffer(torch.full((), torch.nan))
        self.running_var_unsafe = Buffer(torch.full((), torch.nan))

    def statistics(self) -> Statistics:
        """Running mean and variance."""
        return self.running_mean_unsafe, self.running_var_unsafe

    def forward(self, x: Float[Tensor, "..."], statistics: Statistics | None = None) -> Float[Tensor, "..."]:
        """Normalise with these statistics, or with the module's own; with mean 0 and scale 1 before any."""
        mean, variance = self.statistics() if statistics is None else statistics
        unused = mean.isnan()
        scale = torch.sqrt(variance.masked_fill(unused, 1) + NORMALIZER_EPS).masked_fill(unused, 1)
        return (x - mean.masked_fill(unused, 0)) / scale


def update_statistics(statistics: Statistics, x: Float[Tensor, "..."]) -> Statistics:
    """The statistics after a training batch.

    The first batch gives its mean and unbiased variance. Later ones move the mean by a hundredth, then the variance
    by a hundredth towards the mean square distance from the new mean.
    """
    mean, variance = statistics
    unused = mean.isnan()
    own, size = x.mean(), x.numel()
    moved = torch.where(unused, own, (1 - NORMALIZER_MOMENTUM) * mean + NORMALIZER_MOMENTUM * own)
    square = ((x - moved) ** 2).sum()
    later = (1 - NORMALIZER_MOMENTUM) * variance + NORMALIZER_MOMENTUM * (square / size)
    return moved, torch.where(unused, square / (size - 1), later)
