"""Inference in JAX; the twin of `torch_impl.infer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_impl.model.weight_norm import fold
from jax_impl.objective import bind
from jax_impl.precision import arithmetic, platform
from jax_impl.weights import (
    Params,
    abstract_denoiser,
    abstract_enhancer,
    bind_enhancer,
    enhancer_from_arrays,
    from_arrays,
)
from parivox.backend import Precision, Solver
from parivox.hparams import EnhancerHParams

__all__ = ["DenoiserModel", "EnhancerModel", "load_denoiser", "load_enhancer"]

DenoiserModel = Callable[[Float[np.ndarray, "b t"]], Float[np.ndarray, "b t"]]
"""(b, t) at 44,100 Hz on the host -> denoised (b, t) on the host."""

EnhancerModel = Callable[..., np.ndarray]
"""(x, prior, noise, tau, blend, method, nfe) on the host -> enhanced (b, u) on the host; see `Backend.enhance`."""


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
    device = platform(params)

    @jax.jit
    def forward(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        with arithmetic(precision, device):
            return bind(graph, params)(x)

    return lambda x: np.asarray(forward(params, jnp.asarray(x, dtype)))


def load_enhancer(
    arrays: Mapping[str, np.ndarray],
    hp: EnhancerHParams,
    dtype: str = "float32",
    precision: Precision = "highest",
) -> EnhancerModel:
    """An enhancer from named arrays, its weight norm folded.

    Every new (b, t), solver and number of evaluations compiles once, and takes as long for many evaluations as for
    few: they are steps of a loop.

    Args:
        arrays: parameters and statistics; buffers of a published checkpoint are used where they are there.
        hp: hyperparameters, which give the sizes and the scale of the latent.
        dtype: of all arithmetic.
        precision: of convolutions and matrix products.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    graph, _, _ = abstract_enhancer(hp, folded=True)
    params, buffers = enhancer_from_arrays(arrays, hp, jnp.dtype(dtype))
    params = fold(params)
    device = platform(params)

    @partial(jax.jit, static_argnames=("method", "nfe"))
    def forward(
        params: Params, buffers: Params, inputs: dict[str, jax.Array], method: Solver, nfe: int
    ) -> jax.Array:
        with arithmetic(precision, device):
            return bind_enhancer(graph, params, buffers)(**inputs, method=method, nfe=nfe)

    def enhance(
        x: Float[np.ndarray, "b t"],
        prior: Float[np.ndarray, "b l n"],
        noise: Float[np.ndarray, "b z n+10"],
        tau: Float[np.ndarray, " b"],
        blend: Float[np.ndarray, " b"] | None,
        method: Solver,
        nfe: int,
    ) -> Float[np.ndarray, "b u"]:
        given = {"x": x, "prior": prior, "noise": noise, "tau": tau, "blend": blend}
        inputs = {name: jnp.asarray(array, dtype) for name, array in given.items() if array is not None}
        return np.asarray(forward(params, buffers, inputs, method=method, nfe=nfe))

    return enhance
