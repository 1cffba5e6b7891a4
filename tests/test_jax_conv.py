"""The convolutions that JAX computes as matrix products, those that it leaves to XLA, and how their images lie."""

from __future__ import annotations

from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_impl.ends import ending
from jax_impl.model import layers
from jax_impl.model.conv import convolve
from jax_impl.model.layers import SLOW_CHANNELS, Conv2d, sum_of_shifts
from jax_impl.model.unet import UNet
from jax_impl.precision import arithmetic
from parity_tests.rungs_signal import distance


def plain(x, weight):
    pad = weight.shape[-1] // 2
    return jax.lax.conv_general_dilated(
        x, weight, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "OIHW", "NHWC")
    )


def both(function, x, weight, cotangent):
    y, back = jax.vjp(function, x, weight)
    return [np.asarray(part) for part in (y, *back(cotangent))]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_products_are_the_convolution(size):
    rng = np.random.default_rng(size)
    with jax.enable_x64(True):
        arrays = [
            jnp.asarray(rng.standard_normal(s)) for s in ((2, 7, 9, 16), (16, 16, size, size), (2, 7, 9, 16))
        ]
        for found, wanted in zip(both(sum_of_shifts, *arrays), both(plain, *arrays), strict=True):
            assert distance(found, wanted) < 1e-13


@pytest.mark.parametrize("channels", [SLOW_CHANNELS, (16, 8), (3, 16)])
@pytest.mark.parametrize("least", [0, 2**19])
def test_a_layer_takes_either_way(channels, least, monkeypatch):
    monkeypatch.setattr(layers, "SLOW_VALUES", least)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        layer = Conv2d(*channels, 3)
        layer.weight[...] = weight = jnp.asarray(rng.standard_normal((channels[1], channels[0], 3, 3)))
        layer.bias[...] = bias = jnp.asarray(rng.standard_normal(channels[1]))
        x = jnp.asarray(rng.standard_normal((2, 5, 6, channels[0])))
        assert layer(x).dtype == jnp.float64
        assert distance(np.asarray(layer(x)), np.asarray(plain(x, weight) + bias)) < 1e-13


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (3, 1), (3, 4), (7, 2)])
def test_one_product_of_patches_is_the_convolution(taps, dilation, device, dtype):
    rng = np.random.default_rng(taps)
    x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in ((2, 30, 5), (4, 5, taps), (4,)))
    length = 30 - dilation * (taps - 1)
    wanted = bias + sum(x[:, k * dilation : k * dilation + length] @ weight[:, :, k].T for k in range(taps))
    with jax.enable_x64(dtype == "float64"), arithmetic("highest", device):
        found = convolve(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(bias), dilation)
    assert found.dtype == dtype and found.shape == (2, length, 4)
    assert distance(np.asarray(found), wanted) < {"float32": 1e-6, "float64": 1e-14}[dtype]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(("bins", "frames"), [(40, 20), (20, 40)])
def test_the_longer_axis_of_an_image_lies_inside_on_a_cpu(bins, frames, ended):
    rng = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = []
    with jax.enable_x64(True):
        net = UNet(3, 2, 1)
        for _, parameter in nnx.iter_graph(net):
            if isinstance(parameter, nnx.Param):
                parameter[...] = jnp.asarray(rng.standard_normal(parameter.shape))
        x = jnp.asarray(rng.standard_normal((2, bins, frames, 3)))
        lengths = jnp.asarray([16, frames]) if ended else None

        def run(device):
            with arithmetic("highest", device), ending(lengths, frames):
                return np.asarray(net(x))

        seen = Conv2d.__call__

        def watched(self, image):
            shapes.append(image.shape)
            return seen(self, image)

        with patch.object(Conv2d, "__call__", watched):
            on_cpu = run("cpu")
        assert shapes[0][1:3] == (32, 48)
        assert on_cpu.shape == (2, bins, frames, 2)
        assert distance(on_cpu, run("gpu")) < 1e-12
