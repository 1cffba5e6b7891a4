"""The denoiser in PyTorch; the twin of `jax_impl.model.denoiser`.

A UNet looks at magnitude and phase of the noisy STFT and answers with a mask and a rotation of the phase.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from parivox.features import DENOISER_STFT
from torch_impl.ends import ending, ends, kept, padded
from torch_impl.features import istft, magnitude_phase, peak_normalize, stft
from torch_impl.model.unet import UNet

__all__ = ["Denoiser", "denoiser_loss"]


class Denoiser(nn.Module):
    """Noisy speech in, clean speech out, both (b, t) at 44,100 Hz; t at least 841."""

    def __init__(self, hidden: int = 16):
        super().__init__()
        self.net = UNet(3, 3, hidden)

    def forward(self, x: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Denoise; each row is peak-normalised first and the result stays at that scale."""
        x = peak_normalize(x)
        z = stft(x, DENOISER_STFT)[..., :-1]
        with ending(ends(z.shape[-1]), z.shape[-1]):  # whole frames from here on
            y = self._masked(z)
        return pad(y, (0, x.shape[-1] - y.shape[-1]))

    def _masked(self, z: Complex[Tensor, "b f n"]) -> Float[Tensor, "b u"]:
        """Look at a spectrum, turn and weaken it, and make sound of it."""
        turned = self.turned(*magnitude_phase(z))
        parts = [padded(part, 0, 1, "replicate") for part in turned]
        return kept(istft(torch.complex(*parts), DENOISER_STFT))

    def turned(
        self, magnitude: Float[Tensor, "b f n"], cos: Float[Tensor, "b f n"], sin: Float[Tensor, "b f n"]
    ) -> tuple[Float[Tensor, "b f n"], Float[Tensor, "b f n"]]:
        """Real and imaginary part of what the network makes of a spectrum."""
        dtype = magnitude.dtype
        # The network computes in the dtype of its weights, which may be half precision; the sound around it does not.
        image = torch.stack([magnitude, cos, sin], dim=1).to(self.net.input_proj.weight.dtype)
        out = self.net(image).to(dtype)
        mask = torch.sigmoid(out[:, 0])
        re, im = torch.tanh(out[:, 1]), torch.tanh(out[:, 2])
        # The 1e-7 keeps the gradient finite where the network answers with no direction at all.
        length = torch.sqrt(re**2 + im**2 + 1e-7)
        turn_cos, turn_sin = re / length, im / length
        magnitude = torch.relu(magnitude * mask)
        turned = cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin
        return magnitude * turned[0], magnitude * turned[1]


def denoiser_loss(output: Float[Tensor, "b t"], target: Float[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Mean absolute difference between the output and the peak-normalised target."""
    return (output - peak_normalize(target)).abs().mean()
