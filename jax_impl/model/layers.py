"""Layers of the UNet in JAX; the twin of `torch_impl.model.layers`.

Images are channels-last, (b, f, n, c), or (b, n, f, c) inside of `frames_first`. Weights keep the public names and
shapes (out, in, kernel...): the order in memory is the compiler's to choose, so nothing is gained by another one, and
a checkpoint needs no transposition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.ends import ends, kept
from jax_impl.precision import operands, spread, total

__all__ = ["Conv2d", "GELU", "GroupNorm", "downsample", "frames_first", "upsample"]


SLOW_CHANNELS = (16, 16)
SLOW_VALUES = 2**19
"""Channels and least size of a float64 image whose convolution has a gradient that takes XLA fourteen times as long
on a CPU as nine matrix products do."""

_frames_axis: ContextVar[int] = ContextVar("frames_axis", default=-2)


@contextmanager
def frames_first(value: bool) -> Iterator[None]:
    """Trace everything inside for images (b, n, f, c) if `value`, else for (b, f, n, c)."""
    token = _frames_axis.set(-3 if value else -2)
    try:
        yield
    finally:
        _frames_axis.reset(token)


def _wide(x: jax.Array) -> jax.Array:
    # What is not a convolution is computed in float32 at least and rounded once, as torch does with half precision.
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Conv2d(nnx.Module):
    """Stride-1 2-D convolution with zero padding that keeps the size; odd square kernels."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int):
        self.weight = nnx.Param(jnp.zeros((channels_out, channels_in, kernel, kernel)))
        self.bias = nnx.Param(jnp.zeros((channels_out,)))

    def __call__(self, x: Float[Array, "b f n i"]) -> Float[Array, "b f n o"]:
        """Convolve an image."""
        weight, axis = self.weight[...], _frames_axis.get()
        pad, x = weight.shape[-1] // 2, kept(x, axis)
        if axis == -3:
            weight = weight.swapaxes(2, 3)
        image, weight = operands(x, weight)
        if image.dtype == jnp.float64 and weight.shape[:2] == SLOW_CHANNELS and image.size >= SLOW_VALUES:
            return sum_of_shifts(image, weight) + spread(self.bias[...], x.shape)
        y = jax.lax.conv_general_dilated(
            image,
            weight,
            window_strides=(1, 1),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        return (_wide(y.astype(x.dtype)) + spread(_wide(self.bias[...]), y.shape)).astype(x.dtype)


def sum_of_shifts(x: Float[Array, "b f n i"], weight: Float[Array, "o i k k"]) -> Float[Array, "b f n o"]:
    """The same convolution as one matrix product for each place of the kernel."""
    size, (_, f, n, _) = weight.shape[-1], x.shape
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifts = ((i, j) for i in range(size) for j in range(size))
    parts = [
        jnp.einsum("bfni,oi->bfno", padded[:, i : i + f, j : j + n], weight[:, :, i, j]) for i, j in shifts
    ]
    return sum(parts[1:], parts[0])


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He, 2018), eps 1e-5, variance from the centred values.

    Flax's own default eps is 1e-6 and its variance E[x^2] - E[x]^2, which loses digits in float32.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5):
        self.groups = groups
        self.eps = eps
        self.weight = nnx.Param(jnp.zeros((channels,)))
        self.bias = nnx.Param(jnp.zeros((channels,)))

    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
        """Normalise over frequency, frames and the channels of a group; also without an axis of frequency."""
        axis = _frames_axis.get()
        grouped = kept(_wide(x), axis).reshape(*x.shape[:-1], self.groups, -1)
        axes, shape = (*range(1, x.ndim - 1), x.ndim), grouped.shape
        count: int | jax.Array = math.prod(shape[axis] for axis in axes)
        if (last := ends(x.shape[axis])) is not None:
            count = (count // x.shape[axis] * last).reshape(-1, *(1,) * x.ndim)
        centred = grouped - spread(total(grouped, axes) / count, shape)
        centred = kept(centred.reshape(x.shape), axis).reshape(shape)
        variance = total(centred**2, axes) / count
        y = (centred * spread(jax.lax.rsqrt(variance + self.eps), shape)).reshape(x.shape)
        y = y * spread(_wide(self.weight[...]), x.shape) + spread(_wide(self.bias[...]), x.shape)
        return y.astype(x.dtype)


class GELU(nnx.Module):
    """x * Phi(x) with the exact error function; `jax.nn.gelu` takes the tanh approximation unless told."""

    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
        """Apply the activation."""
        return jax.nn.gelu(_wide(x), approximate=False).astype(x.dtype)


def downsample(x: Float[Array, "b f n c"]) -> Float[Array, "b f2 n2 c"]:
    """Nearest x 1/2: keeps even rows and columns."""
    return x[:, ::2, ::2]


def upsample(x: Float[Array, "b f n c"]) -> Float[Array, "b f2 n2 c"]:
    """Nearest x 2."""
    b, f, n, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, f, 2, n, 2, c)).reshape(b, 2 * f, 2 * n, c)
