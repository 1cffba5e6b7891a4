"""Inference in JAX; the twin of `torch_impl.infer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_impl.ends import ending, kept
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

DenoiserModel = Callable[..., np.ndarray]
"""(x, lengths) on the host -> denoised (b, t) on the host; see `Backend.denoise`."""

EnhancerModel = Callable[..., np.ndarray]
"""(x, prior, noise, tau, blend, method, nfe, lengths) on the host -> enhanced (b, u) there; see `Backend.enhance`."""


def denoiser_program(hidden: int, precision: Precision, device: str) -> Any:
    """The denoiser, to be compiled for `cpu`, `gpu` or `tpu`: (params, x, lengths) -> denoised (b, t)."""
    graph, _ = abstract_denoiser(hidden)

    @jax.jit
    def forward(params: Params, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        with arithmetic(precision, device), ending(lengths, x.shape[1]):
            return bind(graph, params)(_kept(x))

    return forward


def load_denoiser(
    arrays: Mapping[str, np.ndarray],
    hidden: int = 16,
    dtype: str = "float32",
    precision: Precision = "highest",
) -> DenoiserModel:
    """A compiled denoiser from named arrays; every new (b, t) compiles once, and once more with lengths.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    params = from_arrays(arrays, hidden, jnp.dtype(dtype))
    forward = denoiser_program(hidden, precision, platform(params))

    def denoise(
        x: Float[np.ndarray, "b t"], lengths: Int[np.ndarray, " b"] | None = None
    ) -> Float[np.ndarray, "b t"]:
        return np.asarray(forward(params, jnp.asarray(x, dtype), _counts(lengths)))

    return denoise


def enhancer_program(hp: EnhancerHParams, precision: Precision, device: str) -> Any:
    """The enhancer, to be compiled: (folded params, buffers, x, inputs, lengths, method, nfe) -> enhanced (b, u)."""
    graph, _, _ = abstract_enhancer(hp, folded=True)

    @partial(jax.jit, static_argnames=("method", "nfe"))
    def forward(
        params: Params,
        buffers: Params,
        x: jax.Array,
        inputs: dict[str, jax.Array],
        lengths: jax.Array | None,
        method: Solver,
        nfe: int,
    ) -> jax.Array:
        with arithmetic(precision, device), ending(lengths, x.shape[1]):
            return bind_enhancer(graph, params, buffers)(_kept(x), **inputs, method=method, nfe=nfe)

    return forward


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
    params, buffers = enhancer_from_arrays(arrays, hp, jnp.dtype(dtype))
    params = fold(params)
    forward = enhancer_program(hp, precision, platform(params))

    def enhance(
        x: Float[np.ndarray, "b t"],
        prior: Float[np.ndarray, "b l n"],
        noise: Float[np.ndarray, "b z n+10"],
        tau: Float[np.ndarray, " b"],
        blend: Float[np.ndarray, " b"] | None,
        method: Solver,
        nfe: int,
        lengths: Int[np.ndarray, " b"] | None = None,
    ) -> Float[np.ndarray, "b u"]:
        given = {"prior": prior, "noise": noise, "tau": tau, "blend": blend}
        inputs = {name: jnp.asarray(array, dtype) for name, array in given.items() if array is not None}
        sound = jnp.asarray(x, dtype)
        return np.asarray(forward(params, buffers, sound, inputs, _counts(lengths), method=method, nfe=nfe))

    return enhance


def _kept(x: jax.Array) -> jax.Array:
    """Sound with zeros beyond each row's end."""
    return kept(x[..., None])[..., 0]


def _counts(lengths: np.ndarray | None) -> jax.Array | None:
    return None if lengths is None else jax.device_put(np.array(lengths, np.int32))
