"""Arithmetic of convolutions and matrix products in JAX; the twin of `torch_impl.precision`.

JAX takes TF32 on a GPU and bfloat16 on a TPU for float32 operands unless told otherwise, and a correct
port then looks broken. Parivox says it: `highest` is float32, `tf32` is what the hardware calls so
(three bfloat16 passes on a TPU), `bf16` rounds the operands to bfloat16 and sums in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from parivox.backend import Precision

__all__ = ["arithmetic", "operands"]

_MATMUL = {"highest": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}
_current: ContextVar[Precision] = ContextVar("precision", default="highest")


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Trace everything inside with this precision. A traced program keeps the one it was traced with."""
    token = _current.set(precision)
    try:
        with jax.default_matmul_precision(_MATMUL[precision]):
            yield
    finally:
        _current.reset(token)


def operands(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two operands of a convolution in the dtype that the current precision multiplies in."""
    if _current.get() == "bf16":
        return x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    return x, weight
