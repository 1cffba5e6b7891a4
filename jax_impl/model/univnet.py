"""The vocoder in JAX; the twin of `torch_impl.model.univnet`.

W. Jang et al., "UnivNet", 2021: noise becomes sound under a condition, block by block at a higher rate.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.model.conv import Conv1d, LeakyReLU
from jax_impl.model.lvc import LVCBlock
from parivox.enhancer_tables import FRAME, STRIDES, TAIL, VOCODER_NOISE, tile_starts, vocoder_reach

__all__ = ["UnivNet"]


class UnivNet(nnx.Module):
    """Condition and noise in, sound in (-1, 1) out, 420 samples for each frame.

    Attributes:
        tile: frames whose sound is made at a time, so that memory does not grow with the length of the sound; None
            for all of them. The sound is the same.
    """

    def __init__(self, condition: int, channels: int):
        self.tile: int | None = None
        self.conv_pre = Conv1d(VOCODER_NOISE, channels, 7, normed=True, reflect=True)
        self.blocks = nnx.List([LVCBlock(condition, channels, stride) for stride in STRIDES])
        self.conv_post = nnx.List([LeakyReLU(), Conv1d(channels, 1, 7, normed=True, reflect=True)])

    def __call__(
        self, condition: Float[Array, "b n w"], noise: Float[Array, "b n+10 z"]
    ) -> Float[Array, "b t"]:
        """Make sound; t = 420 n."""
        length, frames = condition.shape[1], noise.shape[1]
        condition = jnp.pad(condition, ((0, 0), (0, TAIL), (0, 0)))
        window = frames if self.tile is None else self.tile + 2 * vocoder_reach()
        if window >= frames:
            return self._sound(condition, noise)[:, : FRAME * length]

        # Window by window, each over what the one before has left to it.
        starts, fresh = np.array(tile_starts(frames, window)), np.arange(window * FRAME)

        def add(k: Array, sound: Array) -> Array:
            start = jnp.asarray(starts)[k]
            parts = (jax.lax.dynamic_slice_in_dim(part, start, window, 1) for part in (condition, noise))
            before = jax.lax.dynamic_slice_in_dim(sound, start * FRAME, window * FRAME, 1)
            left_out = jnp.where(k > 0, vocoder_reach() * FRAME, 0)
            made = jnp.where(fresh >= left_out, self._sound(*parts), before)
            return jax.lax.dynamic_update_slice_in_dim(sound, made, start * FRAME, 1)

        sound = jnp.zeros((noise.shape[0], frames * FRAME), noise.dtype)
        return jax.lax.fori_loop(0, len(starts), add, sound)[:, : FRAME * length]

    def _sound(self, condition: Float[Array, "b n w"], noise: Float[Array, "b n z"]) -> Float[Array, "b t"]:
        """Sound of all frames."""
        # The net computes in the dtype of its weights, which may be half precision; the sound does not.
        dtype = self.conv_pre.bias[...].dtype
        x, condition = self.conv_pre(noise.astype(dtype)), condition.astype(dtype)
        for block in self.blocks:
            x = block(x, condition)
        leaky, last = self.conv_post
        return jnp.tanh(last(leaky(x)).astype(noise.dtype))[..., 0]
