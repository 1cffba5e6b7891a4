"""The discriminator in PyTorch; the twin of `jax_impl.model.discriminator`.

Five period discriminators (J. Kong et al., "HiFi-GAN", 2020) and one spectrogram discriminator for each resolution
of the STFT loss (W. Jang et al., "UnivNet", 2021). Images are (b, c, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from parivox import weights_discriminator as shape
from parivox.features import padded_window
from torch_impl.model.mrstft import magnitudes
from torch_impl.model.weight_norm import weight_norm

__all__ = [
    "Discriminator",
    "PeriodDiscriminator",
    "SpectrogramDiscriminator",
    "discriminator_losses",
    "generator_losses",
]

Scores = dict[str, list[Float[Tensor, "b ..."]]]


class _Parts(nn.Module):
    # Named as the public checkpoint names the two parts of a weight-normed weight.
    def __init__(self, outputs: int, inputs: int, kernel: tuple[int, int]):
        super().__init__()
        self.original0 = nn.Parameter(torch.zeros(outputs, 1, 1, 1))
        self.original1 = nn.Parameter(torch.zeros(outputs, inputs, *kernel))


class _Parametrizations(nn.Module):
    def __init__(self, weight: _Parts):
        super().__init__()
        self.weight = weight


class _Conv2d(nn.Module):
    """Weight-normed convolution with zero padding of half the kernel."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)):
        super().__init__()
        self.stride = stride
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.parametrizations = _Parametrizations(_Parts(outputs, inputs, kernel))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        parts = self.parametrizations.weight
        weight = weight_norm(parts.original0, parts.original1)
        padding = [size // 2 for size in weight.shape[2:]]
        return F.conv2d(x, weight, self.bias, stride=self.stride, padding=padding)


class _Stack(nn.Module):
    """Convolutions with a leaky ReLU after each, and one without that gives scores."""

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[tuple[int, int]],
        strides: Sequence[tuple[int, int]],
        head: tuple[int, int],
    ):
        super().__init__()
        layers = zip(channels[:-1], channels[1:], kernels, strides, strict=True)
        self.convs = nn.ModuleList([_Conv2d(*layer) for layer in layers])
        self.conv_post = _Conv2d(channels[-1], 1, head)

    def _scores(self, image: Float[Tensor, "b h w"]) -> Float[Tensor, "b h2 w2"]:
        # The network computes in the dtype of its weights, which may be half precision; sound and scores do not.
        x = image[:, None].to(self.conv_post.bias.dtype)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), shape.LEAK)
        return self.conv_post(x)[:, 0].to(image.dtype)


class PeriodDiscriminator(_Stack):
    """Judges samples that lie a period apart, one after the other, each of the phases on its own."""

    def __init__(self, period: int):
        super().__init__(shape.PERIOD_CHANNELS, shape.PERIOD_KERNELS, shape.PERIOD_STRIDES, shape.PERIOD_HEAD)
        self.period = period

    def forward(self, x: Float[Tensor, "b t"]) -> Float[Tensor, "b p n"]:
        """Scores of every phase p; the end of the signal is reflected up to a multiple of the period.

        Raises:
            ValueError: the signal is not longer than what is reflected.
        """
        b, length = x.shape
        missing = -length % self.period
        if length <= missing:
            raise ValueError(f"{length} samples are too few to reflect {missing}")
        x = F.pad(x, (0, missing), mode="reflect")
        # Kernels are one sample wide, so phases are rows of the batch.
        phases = x.reshape(b, -1, self.period).transpose(1, 2).reshape(b * self.period, -1, 1)
        return self._scores(phases).reshape(b, self.period, -1)


class SpectrogramDiscriminator(_Stack):
    """Judges a magnitude spectrogram: rectangular window, nothing beyond the ends."""

    def __init__(self, stft_cfg: Mapping[str, int]):
        super().__init__(
            shape.SPECTROGRAM_CHANNELS,
            shape.SPECTROGRAM_KERNELS,
            shape.SPECTROGRAM_STRIDES,
            shape.SPECTROGRAM_HEAD,
        )
        self.n_fft, self.hop, self.win = (stft_cfg[key] for key in ("n_fft", "hop_length", "win_length"))

    def forward(self, x: Float[Tensor, "b t"]) -> Float[Tensor, "b f n"]:
        """Scores over frequency and frames.

        Raises:
            ValueError: the signal is shorter than one frame.
        """
        if x.shape[-1] < self.n_fft:
            raise ValueError(f"a spectrogram needs {self.n_fft} samples, got {x.shape[-1]}")
        return self._scores(magnitudes(x, padded_window(np.ones(self.win), self.n_fft), self.hop))


class Discriminator(nn.Module):
    """All sub-discriminators; takes (b, t) sound at 44,100 Hz as it is, t at least 2,048.

    Args:
        stft_cfgs: `HParams.stft_cfgs`.
    """

    def __init__(self, stft_cfgs: Sequence[Mapping[str, int]]):
        super().__init__()
        self.mpd = nn.ModuleList([PeriodDiscriminator(period) for period in shape.PERIODS])
        self.mrd = nn.ModuleList([SpectrogramDiscriminator(cfg) for cfg in stft_cfgs])

    def forward(self, x: Float[Tensor, "b t"]) -> Scores:
        """Scores of each sub-discriminator, `mpd` by period and `mrd` by resolution."""
        return {"mpd": [part(x) for part in self.mpd], "mrd": [part(x) for part in self.mrd]}


def discriminator_losses(fake: Scores, real: Scores) -> dict[str, Float[Tensor, ""]]:
    """Hinge losses of the discriminator (J. Lim and J. Ye, "Geometric GAN", 2017), whose sum is minimised.

    `d_mpd_fake` and `d_mrd_fake` are the mean of max(0, 1 + score) of generated sound, `d_mpd_real` and
    `d_mrd_real` that of max(0, 1 - score) of recorded sound; each is averaged over its sub-discriminators.
    """
    losses = {}
    for group in fake:
        losses[f"d_{group}_fake"] = _mean([torch.relu(1 + scores) for scores in fake[group]])
        losses[f"d_{group}_real"] = _mean([torch.relu(1 - scores) for scores in real[group]])
    return losses


def mean_score(scores: Scores) -> Float[Tensor, ""]:
    """Mean over the sub-discriminators of their mean scores; the higher, the more it takes the sound for recorded."""
    return _mean([part for group in scores.values() for part in group])


def generator_losses(fake: Scores) -> dict[str, Float[Tensor, ""]]:
    """What the generator minimises: `g_mpd` and `g_mrd`, the negative mean score of the sound it made."""
    return {f"g_{group}": -_mean(scores) for group, scores in fake.items()}


def _mean(parts: Sequence[Tensor]) -> Tensor:
    """Mean of the means."""
    return torch.stack([part.mean() for part in parts]).mean()
