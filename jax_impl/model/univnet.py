"""The vocoder in JAX; the twin of `torch_impl.model.univnet`.

W. Jang et al., "UnivNet", 2021: noise becomes sound under a condition, block by block at a higher rate.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.ends import ending, ends, kept
from jax_impl.model.conv import Conv1d, LeakyReLU
from jax_impl.model.lvc import LVCBlock
from parivox.enhancer_tables import (
    FRAME,
    STRIDES,
    TAIL,
    VOCODER_NOISE,
    tile_starts,
    tile_window,
    vocoder_reach,
)

__all__ = ["UnivNet"]


class UnivNet(nnx.Module):
    """Condition and noise in, sound in (-1, 1) out, 420 samples for each frame.

    Attributes:
        tile: frames whose sound is made at a time, at most, so that memory does not grow with the length of the
            sound; None for all of them. The sound is the same.
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
        last = ends(length)
        condition = jnp.pad(kept(condition), ((0, 0), (0, TAIL), (0, 0)))
        with ending(None if last is None else last + TAIL, frames):
            return self._tiled(condition, noise)[:, : FRAME * length]

    def _tiled(self, condition: Float[Array, "b n w"], noise: Float[Array, "b n z"]) -> Float[Array, "b t"]:
        """Sound of all frames, in tiles where there are many."""
        frames = noise.shape[1]
        last, window = ends(frames), frames if self.tile is None else tile_window(frames, self.tile)
        if window >= frames:
            return self._sound(condition, noise)

        # Window by window, each over what the one before has left to it. A row's last one ends where the row ends.
        starts, fresh = jnp.asarray(tile_starts(frames, window)), np.arange(window * FRAME)
        count: int | Array = len(starts)
        if last is not None:
            room = jnp.maximum(last - window, 0)
            count = 1 + (starts[:-1] < room.max()).sum()
            starts = jnp.minimum(starts[:, None], room)

        def add(k: Array, sound: Array) -> Array:
            start = starts[k]
            parts = (_cut(part, start, window) for part in (condition, noise))
            with ending(None if last is None else jnp.clip(last - start, 1, window), window):
                made = self._sound(*parts)
            left_out = jnp.where(k > 0, vocoder_reach() * FRAME, 0)
            made = jnp.where(fresh >= left_out, made, _cut(sound, start * FRAME, window * FRAME))
            return _put(sound, made, start * FRAME)

        sound = jnp.zeros((noise.shape[0], frames * FRAME), noise.dtype)
        return jax.lax.fori_loop(0, count, add, sound)

    def _sound(self, condition: Float[Array, "b n w"], noise: Float[Array, "b n z"]) -> Float[Array, "b t"]:
        """Sound of all frames."""
        # The net computes in the dtype of its weights, which may be half precision; the sound does not.
        dtype = self.conv_pre.bias[...].dtype
        x, condition = self.conv_pre(noise.astype(dtype)), condition.astype(dtype)
        for block in self.blocks:
            x = block(x, condition)
        leaky, last = self.conv_post
        return jnp.tanh(last(leaky(x)).astype(noise.dtype))[..., 0]


def _cut(x: Array, start: Array, size: int) -> Array:
    """So much of each row (b, n, ...), from one start for all or from its own."""
    if not start.ndim:
        return jax.lax.dynamic_slice_in_dim(x, start, size, 1)
    return jax.vmap(partial(jax.lax.dynamic_slice_in_dim, slice_size=size))(x, start)


def _put(x: Array, part: Array, start: Array) -> Array:
    """Replace what `_cut` would give."""
    if not start.ndim:
        return jax.lax.dynamic_update_slice_in_dim(x, part, start, 1)
    return jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=0))(x, part, start)
