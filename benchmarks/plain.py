"""Layers of the vocoder as one writes them first, for the benchmarks and the tests to compare with.

They compute what the models compute, from the same tensors, with nothing done for speed: filters as convolutions of
one channel, each frame's own kernels in one sum over windows of sound, in JAX every convolution as XLA's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from parivox.backend import BackendName
from parivox.enhancer_tables import FILTER_TAPS, LVC_TAPS

HALF = FILTER_TAPS // 2
FIRST = 2 * HALF + HALF - 1
"""Where the doubled sound begins in what the transposed convolution makes of sound with HALF more on each side: a
sample's first tap comes HALF - 1 before it at the higher rate."""


def torch_twice(x: Any, taps: Any) -> Any:
    """(b, c, n) at double the rate: the transposed convolution of stride 2 over sound whose ends are repeated."""
    import torch.nn.functional as F

    b, c, n = x.shape
    wide = F.pad(x, (HALF, HALF), mode="replicate").reshape(b * c, 1, -1)
    y = F.conv_transpose1d(wide, 2 * taps[None, None], stride=2)
    return y[..., FIRST : FIRST + 2 * n].reshape(b, c, 2 * n)


def torch_halve(x: Any, taps: Any) -> Any:
    """(b, c, m) at half the rate: the filter at every other sample of sound whose ends are repeated."""
    import torch.nn.functional as F

    b, c, m = x.shape
    wide = F.pad(x, (HALF - 1, HALF), mode="replicate").reshape(b * c, 1, -1)
    return F.conv1d(wide, taps[None, None], stride=2).reshape(b, c, m // 2)


def torch_predict(hidden: Any, layer: Any) -> tuple[Any, Any]:
    """Kernels (b, i, o, k, n) and biases (b, o, n) of one layer, by convolution."""
    import torch.nn.functional as F

    biases = F.conv1d(hidden, layer.bias_weight, layer.bias_bias)
    kernels = F.conv1d(hidden, layer.kernel_weight, layer.kernel_bias)
    return kernels.unflatten(1, (-1, biases.shape[1], LVC_TAPS)), biases


def torch_location_variable(x: Any, kernels: Any, biases: Any) -> Any:
    """Each frame's samples (b, n, o, m) of x (b, i, padded) under its own kernels, over windows of three samples."""
    import torch

    frames, edge = kernels.shape[-1], LVC_TAPS - 1
    samples = (x.shape[-1] - edge) // frames
    windows = x.unfold(-1, samples + edge, samples).unfold(-1, LVC_TAPS, 1)
    return torch.einsum("binmk,biokn->bnom", windows, kernels) + biases.transpose(1, 2)[..., None]


def jax_twice(x: Any, taps: Any) -> Any:
    """(b, n, c) at double the rate."""
    import jax
    import jax.numpy as jnp

    b, n, c = x.shape
    wide = jnp.pad(x, ((0, 0), (HALF, HALF), (0, 0)), mode="edge").swapaxes(1, 2).reshape(b * c, -1, 1)
    edge = FILTER_TAPS - 1
    y = jax.lax.conv_general_dilated(
        wide,
        2 * taps[::-1, None, None],
        window_strides=(1,),
        padding=((edge, edge),),
        lhs_dilation=(2,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return y[:, FIRST : FIRST + 2 * n].reshape(b, c, 2 * n).swapaxes(1, 2)


def jax_halve(x: Any, taps: Any) -> Any:
    """(b, m, c) at half the rate."""
    import jax
    import jax.numpy as jnp

    b, m, c = x.shape
    wide = jnp.pad(x, ((0, 0), (HALF - 1, HALF), (0, 0)), mode="edge").swapaxes(1, 2).reshape(b * c, -1, 1)
    y = jax.lax.conv_general_dilated(
        wide, taps[:, None, None], (2,), ((0, 0),), dimension_numbers=("NWC", "WIO", "NWC")
    )
    return y.reshape(b, c, m // 2).swapaxes(1, 2)


def jax_location_variable(x: Any, kernels: Any, biases: Any) -> Any:
    """Samples (b, t, o) of x (b, padded, i) under each frame's kernels (b, n, i, o, k)."""
    import jax.numpy as jnp

    b, n, channels = kernels.shape[:3]
    length = x.shape[1] - (LVC_TAPS - 1)
    windows = jnp.stack([x[:, k : k + length] for k in range(LVC_TAPS)], axis=-1)
    windows = windows.reshape(b, n, -1, channels, LVC_TAPS)
    y = jnp.einsum("bnmik,bniok->bnmo", windows, kernels) + biases[:, :, None]
    return y.reshape(b, length, -1)


PLAIN: Mapping[BackendName, Mapping[tuple[str, str], Callable[..., Any]]] = {
    "torch": {
        ("torch_impl.model.alias_free", "twice"): torch_twice,
        ("torch_impl.model.alias_free", "halve"): torch_halve,
        ("torch_impl.model.lvc", "predict"): torch_predict,
        ("torch_impl.model.lvc", "location_variable"): torch_location_variable,
    },
    "jax": {
        ("jax_impl.model.alias_free", "twice"): jax_twice,
        ("jax_impl.model.alias_free", "halve"): jax_halve,
        ("jax_impl.model.lvc", "location_variable"): jax_location_variable,
        ("jax_impl.model.conv", "takes_products"): lambda dtype: False,
    },
}
"""(module, name) -> what stands there in the plain model."""


@contextmanager
def plainly(name: BackendName) -> Iterator[None]:
    """Put the plain layers in place of a backend's own; a program that JAX compiled before keeps those it had."""
    own: list[tuple[ModuleType, str, Any]] = []
    try:
        for (place, what), plain in PLAIN[name].items():
            module = import_module(place)
            own.append((module, what, getattr(module, what)))
            setattr(module, what, plain)
        yield
    finally:
        for module, what, function in own:
            setattr(module, what, function)
