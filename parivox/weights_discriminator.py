"""Tensor names, shapes and initial weights of the discriminator, as `parivox.weights` has those of the denoiser.

Every convolution is weight-normed (T. Salimans and D. Kingma, "Weight normalization", 2016): what is trained is
a gain for each output and a direction.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parivox.weights import TensorSpec, initial_tensor

PERIODS = (2, 3, 7, 13, 17)
"""Distance, in samples, of what a period discriminator sees side by side."""

RESOLUTIONS = 3
"""Spectrogram discriminators, one for each of `HParams.stft_cfgs`."""

PERIOD_CHANNELS = (1, 64, 128, 256, 512, 1024)
PERIOD_KERNELS = ((5, 1),) * 5
PERIOD_STRIDES = ((3, 1),) * 4 + ((1, 1),)
PERIOD_HEAD = (3, 1)

SPECTROGRAM_CHANNELS = (1, 32, 32, 32, 32, 32)
SPECTROGRAM_KERNELS = ((3, 9),) * 4 + ((3, 3),)
SPECTROGRAM_STRIDES = ((1, 1),) + ((1, 2),) * 3 + ((1, 1),)
SPECTROGRAM_HEAD = (3, 3)
"""Convolutions of a sub-discriminator in turn, over (time, 1) or (frequency, frame), and the one that gives scores."""

LEAK = 0.2
"""Slope of the leaky ReLU below 0."""

GAIN, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
"""Names of the two parts of a weight in the public checkpoint."""


def _conv(name: str, inputs: int, outputs: int, kernel: tuple[int, int]) -> Iterator[tuple[str, TensorSpec]]:
    fan_in = inputs * kernel[0] * kernel[1]
    yield f"{name}.bias", TensorSpec((outputs,), fan_in)
    yield f"{name}.{GAIN}", TensorSpec((outputs, 1, 1, 1))
    yield f"{name}.{DIRECTION}", TensorSpec((outputs, inputs, *kernel), fan_in)


def _stack(
    name: str, channels: tuple[int, ...], kernels: tuple[tuple[int, int], ...], head: tuple[int, int]
) -> Iterator[tuple[str, TensorSpec]]:
    for i, kernel in enumerate(kernels):
        yield from _conv(f"{name}.convs.{i}", channels[i], channels[i + 1], kernel)
    yield from _conv(f"{name}.conv_post", channels[-1], 1, head)


def discriminator_specs() -> dict[str, TensorSpec]:
    """Every parameter of the discriminator; it has one size only."""
    specs = {}
    for i in range(len(PERIODS)):
        specs.update(_stack(f"mpd.{i}", PERIOD_CHANNELS, PERIOD_KERNELS, PERIOD_HEAD))
    for i in range(RESOLUTIONS):
        specs.update(_stack(f"mrd.{i}", SPECTROGRAM_CHANNELS, SPECTROGRAM_KERNELS, SPECTROGRAM_HEAD))
    return specs


def initial_discriminator(seed: int) -> dict[str, np.ndarray]:
    """Initial weights by public name, float32; the same numbers for both backends.

    Directions and biases are uniform in +-1/sqrt(fan_in), and a gain is the norm of its direction, so that the
    weight is the direction itself.
    """
    specs = discriminator_specs()
    weights = {name: initial_tensor(seed, name, spec) for name, spec in specs.items()}
    for name, direction in weights.items():
        if name.endswith(DIRECTION):
            norm = np.sqrt((direction.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True))
            weights[name.removesuffix(DIRECTION) + GAIN] = norm.astype(np.float32)
    return weights
