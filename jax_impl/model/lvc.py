"""Location-variable convolution in JAX; the twin of `torch_impl.model.lvc`.

Z. Zeng et al., "LVCNet", 2021: every frame of the condition brings the kernels for its own samples. Kernels are
made for one layer at a time: those of a second of sound take 23 MB in the published size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.ends import padded
from jax_impl.model.alias_free import AMPBlock
from jax_impl.model.conv import Conv1d, ConvTranspose1d, Identity, LeakyReLU, convolve
from jax_impl.precision import operands, spread
from parivox.enhancer_tables import LVC_DILATIONS, LVC_TAPS, PREDICTOR_PAIRS, PREDICTOR_WIDTH

__all__ = ["KernelPredictor", "LVCBlock", "LayerPredictor", "location_variable", "predict"]


class LayerPredictor(NamedTuple):
    """Weights (out, in, 3) and biases of the convolutions that predict one layer's kernels and biases."""

    kernel_weight: Float[Array, "o d k"]
    kernel_bias: Float[Array, " o"]
    bias_weight: Float[Array, "p d k"]
    bias_bias: Float[Array, " p"]


class KernelPredictor(nnx.Module):
    """The condition of all frames, and from it what predicts each layer's kernels."""

    def __init__(self, condition: int, channels: int):
        self.channels, layers, inner = channels, len(LVC_DILATIONS), PREDICTOR_WIDTH
        outputs = layers * channels * 2 * channels * LVC_TAPS
        self.input_conv = nnx.List([Conv1d(condition, inner, 5, normed=True), LeakyReLU()])
        self.residual_convs = nnx.List(
            nnx.List(
                [
                    Identity(),
                    Conv1d(inner, inner, 3, normed=True),
                    LeakyReLU(),
                    Conv1d(inner, inner, 3, normed=True),
                    LeakyReLU(),
                ]
            )
            for _ in range(PREDICTOR_PAIRS)
        )
        self.kernel_conv = Conv1d(inner, outputs, 3, normed=True)
        self.bias_conv = Conv1d(inner, layers * 2 * channels, 3, normed=True)

    def __call__(self, condition: Float[Array, "b n w"]) -> Float[Array, "b n d"]:
        """What the kernels of a frame are predicted from, together with that of the frames beside it."""
        hidden = _apply(self.input_conv, condition)
        for pair in self.residual_convs:
            hidden = hidden + _apply(pair, hidden)
        return hidden

    def layers(self) -> list[LayerPredictor]:
        """The predictors of the layers in turn."""
        parts = [
            part for conv in (self.kernel_conv, self.bias_conv) for part in (conv.kernel(), conv.bias[...])
        ]
        split = [jnp.split(part, len(LVC_DILATIONS)) for part in parts]
        return [LayerPredictor(*part) for part in zip(*split, strict=True)]


def predict(
    hidden: Float[Array, "b padded d"], layer: LayerPredictor
) -> tuple[Float[Array, "b n i o k"], Float[Array, "b n o"]]:
    """Kernels and biases of one layer for n frames, from these and one frame on each side."""
    biases = convolve(hidden, layer.bias_weight, layer.bias_bias)
    kernels = convolve(hidden, layer.kernel_weight, layer.kernel_bias)
    return kernels.reshape(*biases.shape[:2], -1, biases.shape[-1], LVC_TAPS), biases


def location_variable(
    x: Float[Array, "b padded i"], kernels: Float[Array, "b n i o k"], biases: Float[Array, "b n o"]
) -> Float[Array, "b t o"]:
    """Convolve each frame's t / n samples with its own kernel, from these samples and one on each side of all."""
    dtype = x.dtype
    b, n, channels = kernels.shape[:3]
    length = x.shape[1] - 2
    x, kernels = operands(x, kernels)
    parts = [
        jnp.einsum("bnti,bnio->bnto", x[:, k : k + length].reshape(b, n, -1, channels), kernels[..., k])
        for k in range(LVC_TAPS)
    ]
    y = sum(parts[1:], parts[0]).astype(dtype)
    return (y + spread(biases[:, :, None], y.shape)).reshape(b, length, -1)


class LVCBlock(nnx.Module):
    """Up-sampling, an AMP block, and four gated location-variable convolutions."""

    def __init__(self, condition: int, channels: int, stride: int):
        self.kernel_predictor = KernelPredictor(condition, channels)
        self.convt_pre = nnx.List([LeakyReLU(), ConvTranspose1d(channels, channels, stride)])
        self.amp_block = AMPBlock(channels)
        self.conv_blocks = nnx.List(
            nnx.List([LeakyReLU(), Conv1d(channels, channels, 3, dilation, normed=True), LeakyReLU()])
            for dilation in LVC_DILATIONS
        )

    def __call__(self, x: Float[Array, "b t c"], condition: Float[Array, "b n w"]) -> Float[Array, "b u c"]:
        """Up-sample x, of which each frame of the condition has as many samples as the next."""
        x = self.amp_block(_apply(self.convt_pre, x))
        hidden = self.kernel_predictor(condition)
        for convs, layer in zip(self.conv_blocks, self.kernel_predictor.layers(), strict=True):
            gate, tanh = jnp.split(self._local(_apply(convs, x), hidden, layer), 2, axis=-1)
            x = x + jax.nn.sigmoid(gate) * jnp.tanh(tanh)
        return x

    def _local(self, x: Array, hidden: Array, layer: LayerPredictor) -> Array:
        x, hidden = (padded(part, 1, 1) for part in (x, hidden))
        return location_variable(x, *predict(hidden, layer))


def _apply(layers: nnx.List, x: Array) -> Array:
    for layer in layers:
        x = layer(x)
    return x
