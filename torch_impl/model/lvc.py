"""Location-variable convolution in PyTorch; the twin of `jax_impl.model.lvc`.

Z. Zeng et al., "LVCNet", 2021: every frame of the condition brings the kernels for its own samples. Kernels are
made for one layer at a time: those of a second of sound take 23 MB in the published size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from parivox.enhancer_tables import LVC_DILATIONS, LVC_TAPS, PREDICTOR_PAIRS, PREDICTOR_WIDTH
from torch_impl.ends import padded
from torch_impl.in_place import added, gated
from torch_impl.model.alias_free import AMPBlock
from torch_impl.model.conv import Conv1d, ConvTranspose1d, Identity, LeakyReLU

__all__ = ["KernelPredictor", "LVCBlock", "LayerPredictor", "location_variable", "predict"]


class LayerPredictor(NamedTuple):
    """Weights (out, in, 3) and biases of the convolutions that predict one layer's kernels and biases."""

    kernel_weight: Float[Tensor, "o d k"]
    kernel_bias: Float[Tensor, " o"]
    bias_weight: Float[Tensor, "p d k"]
    bias_bias: Float[Tensor, " p"]


class KernelPredictor(nn.Module):
    """The condition of all frames, and from it what predicts each layer's kernels."""

    def __init__(self, condition: int, channels: int):
        super().__init__()
        self.channels, layers, inner = channels, len(LVC_DILATIONS), PREDICTOR_WIDTH
        outputs = layers * channels * 2 * channels * LVC_TAPS
        self.input_conv = nn.Sequential(Conv1d(condition, inner, 5, normed=True), LeakyReLU())
        self.residual_convs = nn.ModuleList(
            nn.Sequential(
                Identity(),
                Conv1d(inner, inner, 3, normed=True),
                LeakyReLU(),
                Conv1d(inner, inner, 3, normed=True),
                LeakyReLU(),
            )
            for _ in range(PREDICTOR_PAIRS)
        )
        self.kernel_conv = Conv1d(inner, outputs, 3, normed=True)
        self.bias_conv = Conv1d(inner, layers * 2 * channels, 3, normed=True)

    def forward(self, condition: Float[Tensor, "b w n"]) -> Float[Tensor, "b d n"]:
        """What the kernels of a frame are predicted from, together with that of the frames beside it."""
        hidden = self.input_conv(condition)
        for pair in self.residual_convs:
            hidden = hidden + pair(hidden)
        return hidden

    def layers(self) -> list[LayerPredictor]:
        """The predictors of the layers in turn."""
        parts = [part for conv in (self.kernel_conv, self.bias_conv) for part in (conv.kernel(), conv.bias)]
        split = [part.unflatten(0, (len(LVC_DILATIONS), -1)).unbind(0) for part in parts]
        return [LayerPredictor(*part) for part in zip(*split, strict=True)]


def predict(
    hidden: Float[Tensor, "b d padded"], layer: LayerPredictor
) -> tuple[list[Float[Tensor, "frames i o"]], Float[Tensor, "frames o"]]:
    """Kernels, tap by tap, and biases of one layer for b * n frames, from n of each item and one on each side.

    Each tap's kernels come from rows of the weight of their own, so that none is copied to be multiplied.
    """
    patches = hidden.unfold(-1, LVC_TAPS, 1).transpose(1, 2).flatten(2).flatten(0, 1)
    biases = torch.addmm(layer.bias_bias, patches, layer.bias_weight.flatten(1).T)
    weights, offsets = (
        part.unflatten(0, (-1, LVC_TAPS)).unbind(1)
        for part in (layer.kernel_weight.flatten(1), layer.kernel_bias)
    )
    kernels = [
        torch.addmm(offset, patches, weight.T).unflatten(1, (-1, biases.shape[1]))
        for weight, offset in zip(weights, offsets, strict=True)
    ]
    return kernels, biases


def location_variable(
    x: Float[Tensor, "b i padded"],
    kernels: Sequence[Float[Tensor, "frames i o"]],
    biases: Float[Tensor, "frames o"],
) -> Float[Tensor, "b n o m"]:
    """Convolve each frame's m samples with its own kernel, from these samples and one on each side of all."""
    rows, length = len(x), x.shape[-1] - LVC_TAPS + 1
    parts = [x[..., k : k + length].unflatten(-1, (len(biases) // rows, -1)) for k in range(LVC_TAPS)]
    samples = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    y = torch.baddbmm(biases[..., None], kernels[0].mT, samples[0])
    for kernel, part in zip(kernels[1:], samples[1:], strict=True):
        y = y.baddbmm_(kernel.mT, part)
    return y.unflatten(0, (rows, -1))


class LVCBlock(nn.Module):
    """Up-sampling, an AMP block, and four gated location-variable convolutions."""

    def __init__(self, condition: int, channels: int, stride: int):
        super().__init__()
        self.kernel_predictor = KernelPredictor(condition, channels)
        self.convt_pre = nn.Sequential(LeakyReLU(), ConvTranspose1d(channels, channels, stride))
        self.amp_block = AMPBlock(channels)
        self.conv_blocks = nn.ModuleList(
            nn.Sequential(
                LeakyReLU(), Conv1d(channels, channels, 3, dilation, normed=True), LeakyReLU(spare=True)
            )
            for dilation in LVC_DILATIONS
        )

    def forward(self, x: Float[Tensor, "b c t"], condition: Float[Tensor, "b w n"]) -> Float[Tensor, "b c u"]:
        """Up-sample x, of which each frame of the condition has as many samples as the next."""
        x = self.amp_block(self.convt_pre(x))
        hidden = self.kernel_predictor(condition)
        for convs, layer in zip(self.conv_blocks, self.kernel_predictor.layers(), strict=True):
            gate, tanh = self._local(convs(x), hidden, layer).chunk(2, dim=2)
            parts = gated(tanh, gate).transpose(1, 2)
            # Frame by frame into x, or in one piece.
            x = added(x.unflatten(2, parts.shape[2:]), parts).flatten(2)
        return x

    def _local(self, x: Tensor, hidden: Tensor, layer: LayerPredictor) -> Tensor:
        x, hidden = (padded(part, 1, 1) for part in (x, hidden))
        return location_variable(x, *predict(hidden, layer))
