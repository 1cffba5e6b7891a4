"""The vocoder in PyTorch; the twin of `jax_impl.model.univnet`.

W. Jang et al., "UnivNet", 2021: noise becomes sound under a condition, block by block at a higher rate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from parivox.enhancer_tables import (
    FRAME,
    STRIDES,
    TAIL,
    VOCODER_NOISE,
    tile_starts,
    tile_window,
    vocoder_reach,
)
from torch_impl.ends import ending, ends, kept
from torch_impl.model.conv import Conv1d, LeakyReLU
from torch_impl.model.lvc import LVCBlock

__all__ = ["UnivNet"]


class UnivNet(nn.Module):
    """Condition and noise in, sound in (-1, 1) out, 420 samples for each frame.

    Attributes:
        tile: frames whose sound is made at a time, at most, so that memory does not grow with the length of the
            sound; None for all of them. The sound is the same.
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
        last = ends(length)
        condition = F.pad(kept(condition), (0, TAIL))
        with ending(None if last is None else last + TAIL, frames):
            return self._tiled(condition, noise)[:, : FRAME * length]

    def _tiled(
        self, condition: Float[Tensor, "b w n"], noise: Float[Tensor, "b z n"]
    ) -> Float[Tensor, "b t"]:
        """Sound of all frames, in tiles where there are many."""
        frames = noise.shape[-1]
        last, window = ends(frames), frames if self.tile is None else tile_window(frames, self.tile)
        if window >= frames:
            return self._sound(condition, noise)

        # Window by window, each over what the one before has left to it. A row's last one ends where the row ends.
        starts = torch.tensor(tile_starts(frames, window), device=noise.device)[:, None]
        if last is not None:
            room = (last - window).clamp(min=0)
            starts = torch.minimum(starts[: 1 + int((starts[:-1] < room.max()).sum())], room)
        sound = noise.new_zeros(len(noise), frames * FRAME)
        for k, start in enumerate(starts.tolist()):
            parts = (_cut(part, start, window) for part in (condition, noise))
            with ending(None if last is None else (last - starts[k]).clamp(1, window), window):
                made = self._sound(*parts)
            left_out = vocoder_reach() * FRAME if k > 0 else 0
            _put(sound, made[:, left_out:], [at * FRAME + left_out for at in start])
        return sound

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


def _cut(x: Tensor, starts: list[int], size: int) -> Tensor:
    """So much of each row (b, ..., n), from one start for all or from its own."""
    if len(starts) == 1:
        return x[..., starts[0] : starts[0] + size]
    return torch.stack([row[..., at : at + size] for row, at in zip(x, starts, strict=True)])


def _put(x: Tensor, part: Tensor, starts: list[int]) -> None:
    """Replace what `_cut` would give."""
    size = part.shape[-1]
    if len(starts) == 1:
        x[..., starts[0] : starts[0] + size] = part
        return
    for row, own, at in zip(x, part, starts, strict=True):
        row[..., at : at + size] = own
