"""The discriminator in JAX; the twin of `torch_impl.model.discriminator`.

Five period discriminators (J. Kong et al., "HiFi-GAN", 2020) and one spectrogram discriminator for each resolution
of the STFT loss (W. Jang et al., "UnivNet", 2021). Images are channels-last, (b, h, w, c).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.model.mrstft import magnitudes
from jax_impl.model.weight_norm import weight_norm
from jax_impl.precision import operands, spread, total
from parivox import weights_discriminator as shape
from parivox.features import padded_window

__all__ = [
    "Discriminator",
    "PeriodDiscriminator",
    "SpectrogramDiscriminator",
    "discriminator_losses",
    "generator_losses",
]

Scores = dict[str, list[Float[Array, "b ..."]]]


class _Parts(nnx.Module):
    # Named as the public checkpoint names the two parts of a weight-normed weight.
    def __init__(self, outputs: int, inputs: int, kernel: tuple[int, int]):
        self.original0 = nnx.Param(jnp.zeros((outputs, 1, 1, 1)))
        self.original1 = nnx.Param(jnp.zeros((outputs, inputs, *kernel)))


class _Parametrizations(nnx.Module):
    def __init__(self, weight: _Parts):
        self.weight = weight


class _Conv2d(nnx.Module):
    """Weight-normed convolution with zero padding of half the kernel."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)):
        self.stride = stride
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.parametrizations = _Parametrizations(_Parts(outputs, inputs, kernel))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        parts = self.parametrizations.weight
        weight = weight_norm(parts.original0[...], parts.original1[...])
        image, weight = operands(x, weight)
        if image.dtype == jnp.float64:
            y = _products(image, weight, self.stride)
        else:
            y = jax.lax.conv_general_dilated(
                image,
                weight,
                window_strides=self.stride,
                padding=[(size // 2, size // 2) for size in weight.shape[2:]],
                dimension_numbers=("NHWC", "OIHW", "NHWC"),
            )
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = y.astype(x.dtype).astype(wide)
        return (y + spread(self.bias[...].astype(wide), y.shape)).astype(x.dtype)


def _products(x: Array, weight: Array, stride: tuple[int, int]) -> Array:
    """The same convolution as matrix products, one for each place on the kernel's shorter side.

    XLA's float64 convolutions on a CPU take up to seventy times as long.
    """
    (high, wide), (down, right) = weight.shape[2:], stride
    if high > wide:
        return _products(x.swapaxes(1, 2), weight.swapaxes(2, 3), (right, down)).swapaxes(1, 2)
    x = jnp.pad(x, ((0, 0), (high // 2, high // 2), (wide // 2, wide // 2), (0, 0)))
    rows, columns = 1 + (x.shape[1] - high) // down, 1 + (x.shape[2] - wide) // right

    def shifted(i: int, j: int) -> Array:
        return x[:, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]

    parts = [
        jnp.einsum("bhwik,oik->bhwo", jnp.stack([shifted(i, j) for j in range(wide)], -1), weight[:, :, i])
        for i in range(high)
    ]
    return sum(parts[1:], parts[0])


class _Stack(nnx.Module):
    """Convolutions with a leaky ReLU after each, and one without that gives scores."""

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[tuple[int, int]],
        strides: Sequence[tuple[int, int]],
        head: tuple[int, int],
    ):
        layers = zip(channels[:-1], channels[1:], kernels, strides, strict=True)
        self.convs = nnx.List([_Conv2d(*layer) for layer in layers])
        self.conv_post = _Conv2d(channels[-1], 1, head)

    def _scores(self, image: Float[Array, "b h w"]) -> Float[Array, "b h2 w2"]:
        # The network computes in the dtype of its weights, which may be half precision; sound and scores do not.
        x = image[..., None].astype(self.conv_post.bias[...].dtype)
        for conv in self.convs:
            x = jax.nn.leaky_relu(conv(x), shape.LEAK)
        return self.conv_post(x)[..., 0].astype(image.dtype)


class PeriodDiscriminator(_Stack):
    """Judges samples that lie a period apart, one after the other, each of the phases on its own."""

    def __init__(self, period: int):
        self.period = period
        super().__init__(shape.PERIOD_CHANNELS, shape.PERIOD_KERNELS, shape.PERIOD_STRIDES, shape.PERIOD_HEAD)

    def __call__(self, x: Float[Array, "b t"]) -> Float[Array, "b p n"]:
        """Scores of every phase p; the end of the signal is reflected up to a multiple of the period.

        Raises:
            ValueError: the signal is not longer than what is reflected.
        """
        b, length = x.shape
        missing = -length % self.period
        if length <= missing:
            raise ValueError(f"{length} samples are too few to reflect {missing}")
        x = jnp.pad(x, ((0, 0), (0, missing)), mode="reflect")
        # Kernels are one sample wide, so phases are rows of the batch.
        phases = x.reshape(b, -1, self.period).swapaxes(1, 2).reshape(b * self.period, -1, 1)
        return self._scores(phases).reshape(b, self.period, -1)


class SpectrogramDiscriminator(_Stack):
    """Judges a magnitude spectrogram: rectangular window, nothing beyond the ends."""

    def __init__(self, stft_cfg: Mapping[str, int]):
        self.n_fft, self.hop, self.win = (stft_cfg[key] for key in ("n_fft", "hop_length", "win_length"))
        super().__init__(
            shape.SPECTROGRAM_CHANNELS,
            shape.SPECTROGRAM_KERNELS,
            shape.SPECTROGRAM_STRIDES,
            shape.SPECTROGRAM_HEAD,
        )

    def __call__(self, x: Float[Array, "b t"]) -> Float[Array, "b f n"]:
        """Scores over frequency and frames.

        Raises:
            ValueError: the signal is shorter than one frame.
        """
        if x.shape[-1] < self.n_fft:
            raise ValueError(f"a spectrogram needs {self.n_fft} samples, got {x.shape[-1]}")
        return self._scores(magnitudes(x, padded_window(np.ones(self.win), self.n_fft), self.hop))


class Discriminator(nnx.Module):
    """All sub-discriminators; takes (b, t) sound at 44,100 Hz as it is, t at least 2,048.

    Args:
        stft_cfgs: `HParams.stft_cfgs`.
    """

    def __init__(self, stft_cfgs: Sequence[Mapping[str, int]]):
        self.mpd = nnx.List([PeriodDiscriminator(period) for period in shape.PERIODS])
        self.mrd = nnx.List([SpectrogramDiscriminator(cfg) for cfg in stft_cfgs])

    def __call__(self, x: Float[Array, "b t"]) -> Scores:
        """Scores of each sub-discriminator, `mpd` by period and `mrd` by resolution."""
        return {"mpd": [part(x) for part in self.mpd], "mrd": [part(x) for part in self.mrd]}


def discriminator_losses(fake: Scores, real: Scores) -> dict[str, Float[Array, ""]]:
    """Hinge losses of the discriminator (J. Lim and J. Ye, "Geometric GAN", 2017), whose sum is minimised.

    `d_mpd_fake` and `d_mrd_fake` are the mean of max(0, 1 + score) of generated sound, `d_mpd_real` and
    `d_mrd_real` that of max(0, 1 - score) of recorded sound; each is averaged over its sub-discriminators.
    """
    losses = {}
    for group in fake:
        losses[f"d_{group}_fake"] = _mean([jax.nn.relu(1 + scores) for scores in fake[group]])
        losses[f"d_{group}_real"] = _mean([jax.nn.relu(1 - scores) for scores in real[group]])
    return losses


def mean_score(scores: Scores) -> Float[Array, ""]:
    """Mean over the sub-discriminators of their mean scores; the higher, the more it takes the sound for recorded."""
    return _mean([part for group in scores.values() for part in group])


def generator_losses(fake: Scores) -> dict[str, Float[Array, ""]]:
    """What the generator minimises: `g_mpd` and `g_mrd`, the negative mean score of the sound it made."""
    return {f"g_{group}": -_mean(scores) for group, scores in fake.items()}


def _mean(parts: Sequence[Array]) -> Array:
    """Mean of the means."""
    means = [total(part).reshape(()) / part.size for part in parts]
    return sum(means[1:], means[0]) / len(means)
