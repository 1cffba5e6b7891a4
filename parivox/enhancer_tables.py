"""Numbers of the enhancer that nobody trains: its fixed sizes, filters, time frequencies and time map."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from parivox.errors import ConfigError
from parivox.features import SAMPLE_RATE, MelSpec, StftSpec, hann_window, mel_filter_bank
from parivox.hparams import EnhancerHParams

STRIDES = (7, 5, 4, 3)
"""Up-sampling of the vocoder's blocks in turn; their product is a frame's 420 samples."""

VOCODER_NOISE = 128
"""Channels of the noise that the vocoder begins with."""

TAIL = 10
"""Frames of zeros after the vocoder's condition; their sound is cut off again."""

LVC_DILATIONS = (1, 3, 9, 27)
"""Dilation of the convolution before each location-variable convolution of a block."""

LVC_TAPS = 3

TILE = 256
"""Frames whose sound the vocoder makes at a time at inference, beside those that it needs around them."""

AMP_DILATIONS = (1, 3, 5)
PREDICTOR_WIDTH = 64
PREDICTOR_PAIRS = 3

IRMAE_BLOCKS = 4
IRMAE_DILATIONS = (1, 2, 4, 8)
IRMAE_MAPS = 4
"""Bias-free linear maps one after the other, which make the latent's rank small (Jing et al., 2020)."""

NORM_GROUPS = 32
WN_CYCLE = 5
"""The velocity net's dilations are 2^(layer mod WN_CYCLE)."""

TIME_WIDTH = 128
"""Width of the time embedding: sines, then cosines."""

LEAK = 0.2
"""Slope of the leaky ReLUs below 0."""

NORMALIZER_EPS = 1e-9
NORMALIZER_MOMENTUM = 0.01
SNAKE_RANGE = (0.01, 50.0)
PSI_SIGMA = 1e-4
"""Standard deviation of the noise on a point of the flow in training."""

FILTER_TAPS = 12

FRAME = int(np.prod(STRIDES))
"""Samples of a frame."""


def mel_spec(hp: EnhancerHParams) -> MelSpec:
    """The mel spectrogram that these hyperparameters ask for."""
    stft = StftSpec(hp.n_fft, hp.hop_size, "constant")
    return MelSpec(stft, hp.num_mels, hp.preemphasis, hp.stft_magnitude_min)


def kaiser_filter(
    taps: int = FILTER_TAPS, cutoff: float = 0.25, half_width: float = 0.3
) -> Float[np.ndarray, " taps"]:
    """Low-pass filter of even length: a sinc under a Kaiser window, its sum 1, float64.

    The window's shape follows J. Kaiser's formula for the attenuation that so many taps give a transition of
    this width ("Nonrecursive digital filter design using the I0-sinh window function", 1974).

    Args:
        taps: length.
        cutoff: where it cuts, in cycles a sample.
        half_width: half of the transition, in cycles a sample.
    """
    attenuation = 2.285 * (taps // 2 - 1) * np.pi * 4 * half_width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    time = np.arange(taps) - (taps - 1) / 2
    values = np.kaiser(taps, beta) * np.sinc(2 * cutoff * time)
    return values / values.sum()


def time_frequencies(dtype: str = "float64") -> np.ndarray:
    """The frequencies 10^p of the time embedding, p from 0 to 4.

    They multiply t by up to 10^4, where the last bit of p matters. In float32 they are the numbers that the
    published weights were trained with: p is rounded to float32, and counted from the nearer end in steps of 4/63
    rounded to float32.
    """
    count = TIME_WIDTH // 2
    if dtype == "float64":
        return 10.0 ** np.linspace(0, 4, count)
    step, index = float(np.float32(4) / np.float32(count - 1)), np.arange(count)
    exponent = np.where(index < count // 2, step * index, 4 - step * (count - 1 - index))
    return (10.0 ** exponent.astype(np.float32).astype(np.float64)).astype(np.float32)


def time_map_base(divisor: int) -> float:
    """The a of h(t) = (a^t - 1)/(a - 1) with h(1/divisor) = 1/2.

    With b = a^(1/divisor) this is 1 + b + ... + b^(divisor - 1) = 2.

    Raises:
        ConfigError: there is none for a divisor below 2.
    """
    if divisor < 2:
        raise ConfigError(f"cfm_time_mapping_divisor is {divisor}; it must be at least 2")
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if sum(middle**k for k in range(divisor)) < 2 else (low, middle)
    return high**divisor


def time_map_log(divisor: int) -> float:
    """The logarithm of `time_map_base`, 0 where h is the identity."""
    return float(np.log(time_map_base(divisor)))


def solver_times(steps: int, divisor: int) -> Float[np.ndarray, " times"]:
    """Where a solver stands: h(linspace(0, 1, steps + 1)), float64."""
    t, log_base = np.linspace(0, 1, steps + 1), time_map_log(divisor)
    return t if log_base == 0 else np.expm1(log_base * t) / np.expm1(log_base)


def computed_buffers(hp: EnhancerHParams) -> dict[str, np.ndarray]:
    """The tensors of a public checkpoint that follow from the hyperparameters, by public name, float64."""
    spec = mel_spec(hp)
    buffers = {"dummy": np.zeros(1)}
    for prefix in ("", "denoiser."):
        buffers |= {
            f"{prefix}mel_fn.stft_magnitude_min": np.array([spec.magnitude_min]),
            f"{prefix}mel_fn.melspec.spectrogram.window": hann_window(spec.stft.n_fft),
            f"{prefix}mel_fn.melspec.mel_scale.fb": mel_filter_bank(
                SAMPLE_RATE, spec.stft.n_fft, spec.num_mels
            ),
        }
    taps = kaiser_filter()[None, None]
    for block in range(len(STRIDES)):
        for layer in range(len(AMP_DILATIONS)):
            name = f"vocoder.blocks.{block}.amp_block.{layer}.1"
            buffers |= {f"{name}.upsample.filter": taps, f"{name}.downsample.lowpass.filter": taps}
    return buffers


def vocoder_reach() -> int:
    """Frames on each side of a frame that its sound depends on, at most.

    From the last convolution back to the noise, in samples at each layer's rate; the kernels of a frame depend on
    the condition of frames around it too.
    """
    predictor = 2 + 2 * PREDICTOR_PAIRS + 1
    samples, hop, reach = 3, FRAME, 0
    for stride in reversed(STRIDES):
        samples += sum(LVC_DILATIONS) + len(LVC_DILATIONS)
        reach = max(reach, -(-samples // hop) + predictor)
        # The two convolutions of a layer, and the filters that double and halve the rate between them.
        samples += sum(dilation + FILTER_TAPS // 2 + 1 for dilation in AMP_DILATIONS)
        samples, hop = -(-samples // stride) + 1, hop // stride
    return max(reach, samples + 3)


def tile_window(frames: int, tile: int) -> int:
    """Frames of each window when the sound of so many is made in as few tiles of at most `tile` as it takes.

    All windows are of one length, so a last tile that is not full would be computed as if it were.
    """
    around = 2 * vocoder_reach()
    if frames <= tile + around:
        return frames
    tiles = -(-(frames - around) // tile)
    return around + -(-(frames - around) // tiles)


def tile_starts(frames: int, window: int) -> list[int]:
    """First frames of windows, all of one length, that make the sound of so many frames one after the other.

    A window overlaps the one before by what the frames on its edges lack: in each but the first, the first
    `vocoder_reach()` frames are left out, and a window's last ones are replaced by the next window. The first begins
    where the sound begins and the last ends where it ends, so that what lies beyond is zeros for both.
    """
    step = window - 2 * vocoder_reach()
    return [*range(0, frames - window, step), frames - window]
