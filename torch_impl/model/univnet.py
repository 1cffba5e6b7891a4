"""The vocoder in PyTorch; the twin of `jax_impl.model.univnet`.

W. Jang et al., "UnivNet", 2021: noise becomes sound under a condition, block by block at a higher rate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from parivox.enhancer_tables import FRAME, STRIDES, TAIL, VOCODER_NOISE, tile_starts, vocoder_reach
from torch_impl.model.conv import Conv1d, LeakyReLU
from torch_impl.model.lvc import LVCBlock

__all__ = ["UnivNet"]


class UnivNet(nn.Module):
    """Condition and noise in, sound in (-1, 1) out, 420 samples for each frame.

    Attributes:
        tile: frames whose sound is made at a time, so that memory does not grow with the length of the sound; None
            for all of them. The sound is the same.
    """

    def __init__(self, condition: int, channels: int):
        super().__init__()
        self.tile: int | None = None
        self.conv_pre = Conv1d(VOCODER_NOISE, channels, 7, normed=True, reflect=True)
        self.blocks = nn.ModuleList([LVCBlock(condition, channels, stride) for stride in STRIDES])
        self.conv_post = nn.Sequential(LeakyReLU(), Conv1d(channels, 1, 7, normed=True, reflect=True))

    def forward(
        self, condition: Float[Tensor, "b w n"], noise: Float[Tensor, "b z n+10"]
    ) -> Float[Tensor, "b t"]:
        """Make sound; t = 420 n."""
        length, frames = condition.shape[-1], noise.shape[-1]
        condition = F.pad(condition, (0, TAIL))
        window = frames if self.tile is None else self.tile + 2 * vocoder_reach()
        if window >= frames:
            return self._sound(condition, noise)[:, : FRAME * length]

        # Window by window, each over what the one before has left to it.
        sound = noise.new_zeros(len(noise), frames * FRAME)
        for k, start in enumerate(tile_starts(frames, window)):
            parts = (part[..., start : start + window] for part in (condition, noise))
            left_out = vocoder_reach() * FRAME if k > 0 else 0
            begin, end = start * FRAME + left_out, (start + window) * FRAME
            sound[:, begin:end] = self._sound(*parts)[:, left_out:]
        return sound[:, : FRAME * length]

    def _sound(
        self, condition: Float[Tensor, "b w n"], noise: Float[Tensor, "b z n"]
    ) -> Float[Tensor, "b t"]:
        """Sound of all frames."""
        # The net computes in the dtype of its weights, which may be half precision; the sound does not.
        dtype = self.conv_pre.bias.dtype
        x, condition = self.conv_pre(noise.to(dtype)), condition.to(dtype)
        for block in self.blocks:
            x = block(x, condition)
        return torch.tanh(self.conv_post(x).to(noise.dtype))[:, 0]
