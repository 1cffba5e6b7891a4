"""The denoiser in JAX; the twin of `torch_impl.model.denoiser`.

A UNet looks at magnitude and phase of the noisy STFT and answers with a mask and a rotation of the phase.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Complex, Float

from jax_impl.ends import ending, ends, kept, padded
from jax_impl.features import istft, magnitude_phase, peak_normalize, stft
from jax_impl.model.unet import UNet
from parivox.features import DENOISER_STFT

__all__ = ["Denoiser", "denoiser_loss"]


class Denoiser(nnx.Module):
    """Noisy speech in, clean speech out, both (b, t) at 44,100 Hz; t at least 841."""

    def __init__(self, hidden: int = 16):
        self.net = UNet(3, 3, hidden)

    def __call__(self, x: Float[Array, "b t"]) -> Float[Array, "b t"]:
        """Denoise; each row is peak-normalised first and the result stays at that scale."""
        x = peak_normalize(x)
        z = stft(x, DENOISER_STFT)[..., :-1]
        with ending(ends(z.shape[-1]), z.shape[-1]):  # whole frames from here on
            y = self._masked(z)
        return jnp.pad(y, ((0, 0), (0, x.shape[-1] - y.shape[-1])))

    def _masked(self, z: Complex[Array, "b f n"]) -> Float[Array, "b u"]:
        """Look at a spectrum, turn and weaken it, and make sound of it."""
        turned = self.turned(*magnitude_phase(z))
        parts = [padded(part.swapaxes(1, 2), 0, 1, "edge").swapaxes(1, 2) for part in turned]
        return kept(istft(jax.lax.complex(*parts), DENOISER_STFT)[..., None])[..., 0]

    def turned(
        self, magnitude: Float[Array, "b f n"], cos: Float[Array, "b f n"], sin: Float[Array, "b f n"]
    ) -> tuple[Float[Array, "b f n"], Float[Array, "b f n"]]:
        """Real and imaginary part of what the network makes of a spectrum."""
        dtype = magnitude.dtype
        # The network computes in the dtype of its weights, which may be half precision; the sound around it does not.
        image = jnp.stack([magnitude, cos, sin], axis=-1).astype(self.net.input_proj.weight[...].dtype)
        out = self.net(image).astype(dtype)
        mask = jax.nn.sigmoid(out[..., 0])
        re, im = jnp.tanh(out[..., 1]), jnp.tanh(out[..., 2])
        # The 1e-7 keeps the gradient finite where the network answers with no direction at all.
        length = jnp.sqrt(re**2 + im**2 + 1e-7)
        turn_cos, turn_sin = re / length, im / length
        magnitude = jax.nn.relu(magnitude * mask)
        turned = cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin
        return magnitude * turned[0], magnitude * turned[1]


def denoiser_loss(output: Float[Array, "b t"], target: Float[Array, "b t"]) -> Float[Array, ""]:
    """Mean absolute difference between the output and the peak-normalised target."""
    return jnp.abs(output - peak_normalize(target)).mean()
