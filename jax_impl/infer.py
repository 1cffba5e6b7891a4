"""Inference in JAX; the twin of `torch_impl.infer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_impl.precision import arithmetic
from jax_impl.train_step import bind
from jax_impl.weights import abstract_denoiser, from_arrays
from parivox.backend import Precision

__all__ = ["DenoiserModel", "load_denoiser"]

DenoiserModel = Callable[[Float[np.ndarray, "b t"]], Float[np.ndarray, "b t"]]
"""(b, t) at 44,100 Hz on the host -> denoised (b, t) on the host."""


def load_denoiser(
    arrays: Mapping[str, np.ndarray],
    hidden: int = 16,
    dtype: str = "float32",
    precision: Precision = "highest",
) -> DenoiserModel:
    """A compiled denoiser from named arrays; every new (b, t) compiles once.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    graph, _ = abstract_denoiser(hidden)
    params = from_arrays(arrays, hidden, jnp.dtype(dtype))

    @jax.jit
    def forward(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        with arithmetic(precision):
            return bind(graph, params)(x)

    return lambda x: np.asarray(forward(params, jnp.asarray(x, dtype)))
