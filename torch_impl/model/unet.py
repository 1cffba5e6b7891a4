"""The UNet of the denoiser in PyTorch; the twin of `jax_impl.model.unet`.

O. Ronneberger et al., "U-Net", 2015, with pre-activation residual blocks (He et al., "Identity mappings
in deep residual networks", 2016).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from torch_impl.ends import ending, ends, kept
from torch_impl.in_place import added
from torch_impl.model.layers import GELU, Conv2d, GroupNorm, downsample, upsample

__all__ = ["UNet", "UNetBlock"]

Scale = Literal["down", "same", "up"]


def _residual(channels: int) -> nn.Sequential:
    groups = max(1, channels // 16)
    return nn.Sequential(
        GroupNorm(groups, channels),
        GELU(),
        Conv2d(channels, channels, 3),
        GroupNorm(groups, channels),
        GELU(),
        Conv2d(channels, channels, 3),
    )


class UNetBlock(nn.Module):
    """Up-sampling (decoder), plus skip, 3x3 convolution, two residual blocks, down-sampling (encoder)."""

    def __init__(self, channels_in: int, channels_out: int, scale: Scale):
        super().__init__()
        self.scale = scale
        self.pre_conv = Conv2d(channels_in, channels_out, 3)
        self.res_block1 = _residual(channels_out)
        self.res_block2 = _residual(channels_out)

    def forward(
        self, x: Float[Tensor, "b i f n"], skip: Float[Tensor, "b i f2 n2"] | None = None
    ) -> tuple[Float[Tensor, "b o f3 n3"], Float[Tensor, "b o f4 n4"]]:
        """The output and the skip, which is the output before any down-sampling."""
        if self.scale == "up":
            x = upsample(x)
        if skip is not None:
            x = x + skip
        x = self.pre_conv(x)
        x = _added(self.res_block1, x)
        x = _added(self.res_block2, x)
        return (downsample(x) if self.scale == "down" else x), x


class UNet(nn.Module):
    """Image to image, any size: padded with zeros to multiples of 16 right and below, and cut again.

    Channels go hidden -> 2, 4, 8, 16 x hidden in the encoder and back in the decoder.

    Attributes:
        checkpointed: compute the inside of each block again in the backward pass instead of keeping it.
    """

    def __init__(self, channels_in: int, channels_out: int, hidden: int):
        super().__init__()
        widths = [hidden * 2**i for i in range(5)]
        self.checkpointed = False
        self.input_proj = Conv2d(channels_in, hidden, 3)
        self.encoder_blocks = nn.ModuleList(
            [UNetBlock(widths[i], widths[i + 1], "down") for i in range(4)],
        )
        self.middle_blocks = nn.ModuleList([UNetBlock(widths[4], widths[4], "same") for _ in range(2)])
        self.decoder_blocks = nn.ModuleList(
            [UNetBlock(widths[i + 1], widths[i], "up") for i in reversed(range(4))],
        )
        self.head = nn.Sequential(Conv2d(hidden, hidden, 3), GELU(), Conv2d(hidden, channels_out, 1))

    def forward(self, x: Float[Tensor, "b i f n"]) -> Float[Tensor, "b o f n"]:
        """Run the network."""
        _, _, f, n = x.shape
        last = ends(n)
        x = pad(kept(x), (0, -n % 16, 0, -f % 16))
        if last is None and _infers_on_cpu(x):
            x = x.contiguous(memory_format=torch.channels_last)
        with ending(None if last is None else last + -last % 16, x.shape[-1]):
            return self._image(x)[:, :, :f, :n]

    def _image(self, x: Tensor) -> Tensor:
        x = self.input_proj(x)
        skips = []
        for block in self.encoder_blocks:
            x, skip = self._run(block, x)
            skips.append(skip)
        for block in self.middle_blocks:
            x, _ = self._run(block, x)
        for block in self.decoder_blocks:
            x, _ = self._run(block, x, skips.pop())
        return self.head(x)

    def _run(self, block: nn.Module, *images: Tensor) -> tuple[Tensor, Tensor]:
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(block, *images, use_reentrant=False)
        return block(*images)


def _added(layers: nn.Sequential, x: Tensor) -> Tensor:
    """A residual block with its input."""
    if not _infers_on_cpu(x):
        return x + layers(x)
    # Written over wherever nobody else has it: to clear new memory takes longer than to compute what goes there.
    y = x
    for layer in layers:
        if isinstance(layer, GroupNorm):
            y = layer(y, spare=y is not x)
        else:
            y = torch.ops.aten.gelu_(y) if isinstance(layer, GELU) else layer(y)
    return added(y, x)


def _infers_on_cpu(x: Tensor) -> bool:
    """Whether memory may be written over, and images lie with channels last, as convolutions on a CPU take them."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype in (torch.float32, torch.float64)
