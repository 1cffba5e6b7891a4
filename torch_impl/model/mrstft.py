"""The multi-resolution STFT loss in PyTorch; the twin of `jax_impl.model.mrstft`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from parivox.features import hann_window, padded_window
from torch_impl.features import frame, spectra

__all__ = ["magnitudes", "mrstft_loss"]


def magnitudes(
    x: Float[Tensor, "b t"], window: Float[np.ndarray, " n_fft"], hop: int
) -> Float[Tensor, "b f n"]:
    """Magnitude spectrogram without padding: f = n_fft // 2 + 1, n = 1 + (t - n_fft) // hop.

    The gradient of a magnitude of 0 is 0.
    """
    return spectra(frame(x, len(window), hop), window).transpose(1, 2).abs()


def mrstft_loss(
    output: Float[Tensor, "b t"], target: Float[Tensor, "b t"], stft_cfgs: Sequence[Mapping[str, int]]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Spectral convergence and distance of log magnitudes, each averaged over the resolutions.

    R. Yamamoto et al., "Parallel WaveGAN", 2020, but for log(1 + magnitude). X is the output's, Y the target's
    magnitude, of a centred STFT with a periodic Hann window and reflected ends. The convergence is |Y - X| / |Y|,
    the norms over the whole batch. It is not finite where all of the target is silent.

    Args:
        output: what is judged.
        target: what it should be.
        stft_cfgs: `HParams.stft_cfgs`.

    Returns:
        Spectral convergence, mean |log1p(X) - log1p(Y)|.

    Raises:
        ValueError: reflection needs more than n_fft // 2 samples.
    """
    convergence, distance = [], []
    for cfg in stft_cfgs:
        x, y = _hann_magnitudes(output, cfg), _hann_magnitudes(target, cfg)
        convergence.append(_norm(y - x) / _norm(y))
        distance.append((torch.log1p(x) - torch.log1p(y)).abs().mean())
    return torch.stack(convergence).mean(), torch.stack(distance).mean()


def _hann_magnitudes(x: Tensor, cfg: Mapping[str, int]) -> Tensor:
    half = cfg["n_fft"] // 2
    if x.shape[-1] <= half:
        raise ValueError(f"reflect padding needs more than {half} samples, got {x.shape[-1]}")
    window = padded_window(hann_window(cfg["win_length"]), cfg["n_fft"])
    return magnitudes(F.pad(x, (half, half), mode="reflect"), window, cfg["hop_length"])


def _norm(x: Tensor) -> Tensor:
    """L2 norm of all values. Its gradient at 0 is 0.

    A float32 `torch.linalg.vector_norm` of a whole spectrogram loses digits; a sum adds in a tree.
    """
    square = (x**2).sum()
    empty = square == 0
    return torch.where(empty, 0, torch.sqrt(torch.where(empty, 1, square)))
