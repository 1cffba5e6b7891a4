"""The UNet of the denoiser in JAX; the twin of `torch_impl.model.unet`.

O. Ronneberger et al., "U-Net", 2015, with pre-activation residual blocks (He et al., "Identity mappings
in deep residual networks", 2016).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.ends import ending, ends, kept
from jax_impl.model.layers import GELU, Conv2d, GroupNorm, downsample, frames_first, upsample
from jax_impl.precision import on_cpu

__all__ = ["UNet", "UNetBlock"]

Scale = Literal["down", "same", "up"]


def _residual(channels: int) -> nnx.List:
    # A list and not a sequence object, so that names read as in the public checkpoint: "res_block1.2.weight".
    groups = max(1, channels // 16)
    return nnx.List(
        [
            GroupNorm(groups, channels),
            GELU(),
            Conv2d(channels, channels, 3),
            GroupNorm(groups, channels),
            GELU(),
            Conv2d(channels, channels, 3),
        ]
    )


def _apply(layers: nnx.List, x: Array) -> Array:
    for layer in layers:
        x = layer(x)
    return x


class UNetBlock(nnx.Module):
    """Up-sampling (decoder), plus skip, 3x3 convolution, two residual blocks, down-sampling (encoder)."""

    def __init__(self, channels_in: int, channels_out: int, scale: Scale):
        self.scale = scale
        self.pre_conv = Conv2d(channels_in, channels_out, 3)
        self.res_block1 = _residual(channels_out)
        self.res_block2 = _residual(channels_out)

    def __call__(
        self, x: Float[Array, "b f n i"], skip: Float[Array, "b f2 n2 i"] | None = None
    ) -> tuple[Float[Array, "b f3 n3 o"], Float[Array, "b f4 n4 o"]]:
        """The output and the skip, which is the output before any down-sampling."""
        if self.scale == "up":
            x = upsample(x)
        if skip is not None:
            x = x + skip
        x = self.pre_conv(x)
        x = x + _apply(self.res_block1, x)
        x = x + _apply(self.res_block2, x)
        return (downsample(x) if self.scale == "down" else x), x


class UNet(nnx.Module):
    """Image to image, any size: padded with zeros to multiples of 16 right and below, and cut again.

    Channels go hidden -> 2, 4, 8, 16 x hidden in the encoder and back in the decoder.

    Attributes:
        checkpointed: compute the inside of each block again in the backward pass instead of keeping it.
    """

    def __init__(self, channels_in: int, channels_out: int, hidden: int):
        widths = [hidden * 2**i for i in range(5)]
        self.checkpointed = False
        self.input_proj = Conv2d(channels_in, hidden, 3)
        self.encoder_blocks = nnx.List(
            [UNetBlock(widths[i], widths[i + 1], "down") for i in range(4)],
        )
        self.middle_blocks = nnx.List([UNetBlock(widths[4], widths[4], "same") for _ in range(2)])
        self.decoder_blocks = nnx.List(
            [UNetBlock(widths[i + 1], widths[i], "up") for i in reversed(range(4))],
        )
        self.head = nnx.List([Conv2d(hidden, hidden, 3), GELU(), Conv2d(hidden, channels_out, 1)])

    def __call__(self, x: Float[Array, "b f n i"]) -> Float[Array, "b f n o"]:
        """Run the network."""
        _, f, n, _ = x.shape
        last = ends(n)
        x = jnp.pad(kept(x), ((0, 0), (0, -f % 16), (0, -n % 16), (0, 0)))
        with ending(None if last is None else last + -last % 16, x.shape[2]):
            # XLA computes a convolution on a CPU in one thread where the inner axis is short, so the longer one is it.
            if turned := on_cpu() and x.shape[2] < x.shape[1]:
                x = x.swapaxes(1, 2)
            with frames_first(turned):
                y = self._image(x)
            return (y.swapaxes(1, 2) if turned else y)[:, :f, :n]

    def _image(self, x: Array) -> Array:
        x = self.input_proj(x)
        skips = []
        for block in self.encoder_blocks:
            x, skip = self._run(block, x)
            skips.append(skip)
        for block in self.middle_blocks:
            x, _ = self._run(block, x)
        for block in self.decoder_blocks:
            x, _ = self._run(block, x, skips.pop())
        return _apply(self.head, x)

    def _run(self, block: UNetBlock, *images: Array) -> tuple[Array, Array]:
        return (
            jax.checkpoint(lambda *images: block(*images))(*images) if self.checkpointed else block(*images)
        )
