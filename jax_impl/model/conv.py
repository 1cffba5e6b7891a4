"""One-dimensional convolutions in JAX; the twin of `torch_impl.model.conv`.

Signals are channels-last, (b, n, c), as images are in `jax_impl.model.layers`. Weights keep the public names and
shapes (out, in, kernel).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.ends import Padding, kept, padded
from jax_impl.model.weight_norm import weight_norm
from jax_impl.precision import operands, spread, takes_products
from parivox.enhancer_tables import LEAK

__all__ = ["Conv1d", "ConvTranspose1d", "Identity", "LeakyReLU", "convolve"]


class _Parts(nnx.Module):
    # Named as the public checkpoint names the two parts of a weight-normed weight.
    def __init__(self, first: int, second: int, kernel: int):
        self.original0 = nnx.Param(jnp.zeros((first, 1, 1)))
        self.original1 = nnx.Param(jnp.zeros((first, second, kernel)))


class _Parametrizations(nnx.Module):
    def __init__(self, weight: _Parts):
        self.weight = weight


class _Weighted(nnx.Module):
    """A weight, plain or weight-normed over its first axis, and a bias."""

    def __init__(self, shape: tuple[int, int, int], outputs: int, bias: bool, normed: bool):
        if normed:
            self.parametrizations = _Parametrizations(_Parts(*shape))
        else:
            self.weight = nnx.Param(jnp.zeros(shape))
        self.bias: Any = nnx.Param(jnp.zeros((outputs,))) if bias else None

    def kernel(self) -> Float[Array, "first second k"]:
        """The weight."""
        if hasattr(self, "weight"):
            return self.weight[...]
        parts = self.parametrizations.weight
        return weight_norm(parts.original0[...], parts.original1[...])

    def tensors(self) -> list[Array]:
        """The weight, and the bias where there is one."""
        return [self.kernel(), *([] if self.bias is None else [self.bias[...]])]

    def fold(self) -> None:
        """Hold the weight itself from now on, as `weight_norm.fold` gives it; for inference."""
        if not hasattr(self, "weight"):
            self.weight = nnx.Param(jnp.zeros(self.parametrizations.weight.original1.shape))
            del self.parametrizations


class Conv1d(_Weighted):
    """Stride-1 convolution that keeps the length; odd kernels.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: taps.
        dilation: distance of the taps.
        bias: whether there is one.
        normed: whether the weight is a gain and a direction.
        reflect: whether what lies beyond the ends is reflected, or zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        dilation: int = 1,
        bias: bool = True,
        normed: bool = False,
        reflect: bool = False,
    ):
        super().__init__((outputs, inputs, kernel), outputs, bias, normed)
        self.dilation, self.margin = dilation, dilation * (kernel // 2)
        self.mode: Padding = "reflect" if reflect else "constant"

    def __call__(self, x: Float[Array, "b n i"]) -> Float[Array, "b n o"]:
        """Convolve."""
        x = padded(x, self.margin, self.margin, self.mode) if self.margin else x
        return convolve(x, self.kernel(), None if self.bias is None else self.bias[...], self.dilation)


class ConvTranspose1d(_Weighted):
    """Weight-normed transposed convolution that makes `stride` samples of each; the kernel is twice as long.

    Its weight is (in, out, kernel), and the gain belongs to an input. Sample i reaches from
    stride * i - (stride + 1) // 2 to one sample before two strides later.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__((inputs, outputs, 2 * stride), outputs, bias=True, normed=True)
        self.stride = stride

    def __call__(self, x: Float[Array, "b n i"]) -> Float[Array, "b m o"]:
        """Up-sample; m = stride * n.

        One matrix product makes the two strides of samples that each input reaches, which are added where they meet.
        """
        (b, n, _), stride, dtype = x.shape, self.stride, x.dtype
        x, weight = operands(kept(x), self.kernel())
        reach = jnp.einsum("bni,iok->bnko", x, weight)
        one, two = reach[:, :, :stride], reach[:, :, stride:]
        y = jnp.pad(one, ((0, 0), (0, 1), (0, 0), (0, 0))) + jnp.pad(two, ((0, 0), (1, 0), (0, 0), (0, 0)))
        first = (stride + 1) // 2
        y = y.reshape(b, (n + 1) * stride, -1)[:, first : first + n * stride]
        return _biased(y.astype(dtype), self.bias[...])


class LeakyReLU(nnx.Module):
    """max(x, 0.2 x)."""

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Apply the activation."""
        return jax.nn.leaky_relu(x, LEAK)


class Identity(nnx.Module):
    """Holds a place in a list whose numbers are names."""

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Nothing."""
        return x


def convolve(
    x: Float[Array, "b n i"],
    weight: Float[Array, "o i k"],
    bias: Float[Array, " o"] | None = None,
    dilation: int = 1,
) -> Float[Array, "b m o"]:
    """Convolution without padding; m = n - dilation * (k - 1)."""
    dtype, taps = x.dtype, weight.shape[-1]
    x, weight = operands(x, weight)
    if taps == 1 or takes_products(x.dtype):
        y = _product(x, weight, dilation)
    else:
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=(1,),
            padding=((0, 0),),
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "OIW", "NWC"),
        )
    return y.astype(dtype) if bias is None else _biased(y.astype(dtype), bias)


@partial(jax.checkpoint, static_argnums=2)
def _product(x: Array, weight: Array, dilation: int) -> Array:
    """One matrix product of the weight and patches, which are made anew for the gradient and not kept for it."""
    length = x.shape[1] - dilation * (weight.shape[-1] - 1)
    # The patches are laid out as the weight is, which is not copied.
    shifted = [x[:, k * dilation : k * dilation + length] for k in range(weight.shape[-1])]
    patches = jnp.stack(shifted, axis=-1).reshape(x.shape[0], length, -1)
    return jnp.einsum("bnp,op->bno", patches, weight.reshape(weight.shape[0], -1))


def _biased(y: Array, bias: Array) -> Array:
    # Added in float32 at least and rounded once, as torch does with half precision.
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return (y.astype(wide) + spread(bias.astype(wide), y.shape)).astype(y.dtype)
