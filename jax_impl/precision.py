"""Arithmetic of convolutions, matrix products and long sums in JAX; the twin of `torch_impl.precision`.

JAX takes TF32 on a GPU and bfloat16 on a TPU for float32 operands unless told otherwise, and a correct
port then looks broken. Parivox says it: `highest` is float32, `tf32` is what the hardware calls so
(three bfloat16 passes on a TPU), `bf16` rounds the operands to bfloat16 and sums in float32.

XLA adds up an array on a CPU from one end to the other. A group of a full-size image has 870,000 values, and with
one thread the float32 sum then is off by 1e-4; torch adds in a tree. `total` and `spread` sum one axis
after the other, forward and back, so that no chain is longer than an axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp

from parivox.backend import Precision

__all__ = ["arithmetic", "on_cpu", "operands", "platform", "spread", "takes_products", "total"]

_MATMUL = {"highest": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}
_current: ContextVar[Precision] = ContextVar("precision", default="highest")
_on_cpu: ContextVar[bool] = ContextVar("on_cpu", default=False)


@contextmanager
def arithmetic(precision: Precision, device: str = "") -> Iterator[None]:
    """Trace everything inside with this precision. A traced program keeps the one it was traced with.

    Args:
        precision: of convolutions and matrix products.
        device: where the program runs; see `on_cpu`.
    """
    tokens = _current.set(precision), _on_cpu.set(device == "cpu")
    try:
        with jax.default_matmul_precision(_MATMUL[precision]):
            yield
    finally:
        _current.reset(tokens[0])
        _on_cpu.reset(tokens[1])


def on_cpu() -> bool:
    """Whether what is traced now is told to run on a CPU."""
    return _on_cpu.get()


def takes_products(dtype: jnp.dtype) -> bool:
    """Whether a one-dimensional convolution is best computed as one matrix product.

    In a loop (over steps of a solver, over tiles of a sound) XLA's convolutions take four to nine times as long on a
    CPU as they do outside of it; those in float64 are as slow everywhere. In one thread they also lose digits: the
    float32 gradients of a first stage come out four times as far from float64.
    """
    return on_cpu() or dtype == jnp.float64


def operands(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two operands of a convolution in the dtype that the current precision multiplies in."""
    if _current.get() == "bf16":
        return x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    return x, weight


def platform(arrays: Mapping[str, jax.Array]) -> str:
    """Where arrays are: `cpu`, `gpu` or `tpu`."""
    return next(iter(next(iter(arrays.values())).devices())).platform


def total(x: jax.Array, axes: Sequence[int] | None = None) -> jax.Array:
    """Sum over axes, which stay with length 1; None sums over all.

    The barrier keeps the compiler from making one long sum of several short ones.
    """
    for axis in reversed(range(x.ndim) if axes is None else axes):
        x = jax.lax.optimization_barrier(x.sum(axis, keepdims=True))
    return x


def spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeat along axes of length 1, as `jnp.broadcast_to` does; the gradient is summed with `total`."""
    return _spread(shape, x.shape, x)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _spread(shape: tuple[int, ...], own: tuple[int, ...], x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x, shape)


def _spread_forward(shape: tuple[int, ...], own: tuple[int, ...], x: jax.Array) -> tuple[jax.Array, None]:
    return _spread(shape, own, x), None


def _spread_back(shape: tuple[int, ...], own: tuple[int, ...], _: None, g: jax.Array) -> tuple[jax.Array]:
    lead = len(shape) - len(own)
    axes = [k for k, n in enumerate(shape) if k < lead or (own[k - lead] == 1 and n > 1)]
    return (total(g, axes).reshape(own),)


_spread.defvjp(_spread_forward, _spread_back)
