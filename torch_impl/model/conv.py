"""One-dimensional convolutions in PyTorch; the twin of `jax_impl.model.conv`.

Signals are (b, c, n). Weights keep the public names and shapes (out, in, kernel).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from parivox.enhancer_tables import LEAK
from torch_impl.ends import Padding, ends, kept, padded
from torch_impl.in_place import may_overwrite
from torch_impl.model.weight_norm import weight_norm

__all__ = ["Conv1d", "ConvTranspose1d", "Identity", "LeakyReLU", "convolve"]


class _Parts(nn.Module):
    # Named as the public checkpoint names the two parts of a weight-normed weight.
    def __init__(self, first: int, second: int, kernel: int):
        super().__init__()
        self.original0 = nn.Parameter(torch.zeros(first, 1, 1))
        self.original1 = nn.Parameter(torch.zeros(first, second, kernel))


class _Parametrizations(nn.Module):
    def __init__(self, weight: _Parts):
        super().__init__()
        self.weight = weight


class _Weighted(nn.Module):
    """A weight, plain or weight-normed over its first axis, and a bias."""

    def __init__(self, shape: tuple[int, int, int], outputs: int, bias: bool, normed: bool):
        super().__init__()
        if normed:
            self.parametrizations = _Parametrizations(_Parts(*shape))
        else:
            self.weight = nn.Parameter(torch.zeros(shape))
        self.bias: Any = nn.Parameter(torch.zeros(outputs)) if bias else None

    def kernel(self) -> Float[Tensor, "first second k"]:
        """The weight."""
        if hasattr(self, "weight"):
            return self.weight
        parts = self.parametrizations.weight
        return weight_norm(parts.original0, parts.original1)

    def tensors(self) -> list[Tensor]:
        """The weight, and the bias where there is one."""
        return [self.kernel(), *([] if self.bias is None else [self.bias])]

    def fold(self) -> None:
        """Hold the weight itself from now on, as `weight_norm.fold` gives it; for inference."""
        if not hasattr(self, "weight"):
            self.weight = nn.Parameter(torch.zeros_like(self.parametrizations.weight.original1))
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

    def forward(self, x: Float[Tensor, "b i n"]) -> Float[Tensor, "b o n"]:
        """Convolve."""
        if self.mode == "constant" and ends(x.shape[-1]) is None:
            # Its own zeros cost no copy.
            return F.conv1d(x, self.kernel(), self.bias, padding=self.margin, dilation=self.dilation)
        x = padded(x, self.margin, self.margin, self.mode) if self.margin else x
        return convolve(x, self.kernel(), self.bias, self.dilation)


class ConvTranspose1d(_Weighted):
    """Weight-normed transposed convolution that makes `stride` samples of each; the kernel is twice as long.

    Its weight is (in, out, kernel), and the gain belongs to an input. Sample i reaches from
    stride * i - (stride + 1) // 2 to one sample before two strides later.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__((inputs, outputs, 2 * stride), outputs, bias=True, normed=True)
        self.stride = stride

    def forward(self, x: Float[Tensor, "b i n"]) -> Float[Tensor, "b o m"]:
        """Up-sample; m = stride * n."""
        odd = self.stride % 2
        padding = self.stride // 2 + odd
        return F.conv_transpose1d(kept(x), self.kernel(), self.bias, self.stride, padding, output_padding=odd)


class LeakyReLU(nn.Module):
    """max(x, 0.2 x).

    Args:
        spare: what comes in is not needed any more; without gradients the result takes its place.
    """

    def __init__(self, spare: bool = False):
        super().__init__()
        self.spare = spare

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        """Apply the activation."""
        return F.leaky_relu(x, LEAK, inplace=self.spare and may_overwrite(x))


class Identity(nn.Module):
    """Holds a place in a list whose numbers are names."""

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        """Nothing."""
        return x


def convolve(
    x: Float[Tensor, "b i n"],
    weight: Float[Tensor, "o i k"],
    bias: Float[Tensor, " o"] | None = None,
    dilation: int = 1,
) -> Float[Tensor, "b o m"]:
    """Convolution without padding; m = n - dilation * (k - 1)."""
    return F.conv1d(x, weight, bias, dilation=dilation)
