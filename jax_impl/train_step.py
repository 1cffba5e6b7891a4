"""Training state and step of the denoiser in JAX; the twin of `torch_impl.train_step`.

The step is a pure function of (state, batch, learning rate), compiled once, with the state donated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.features import peak_normalize
from jax_impl.model.denoiser import Denoiser, denoiser_loss
from jax_impl.optim import AdamState, clip_by_global_norm, fused_adam, global_norm
from jax_impl.precision import arithmetic
from jax_impl.weights import Params, abstract_denoiser
from parivox.backend import Precision

__all__ = ["TrainState", "loss_and_output", "make_eval", "make_step"]

StepMetrics = dict[str, Array]


class TrainState(NamedTuple):
    """Everything a step changes; `adam.count` is the number of updates made."""

    params: Params
    adam: AdamState


def bind(graph: nnx.GraphDef, params: Params) -> Denoiser:
    """The module with these parameters."""
    flat = [
        (tuple(int(p) if p.isdigit() else p for p in name.split(".")), nnx.Param(leaf))
        for name, leaf in params.items()
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def loss_and_output(
    params: Params, graph: nnx.GraphDef, noisy: Float[Array, "b t"], target: Float[Array, "b t"]
) -> tuple[Float[Array, ""], Float[Array, "b t"]]:
    """The training loss and the denoised batch."""
    output = bind(graph, params)(noisy)
    return denoiser_loss(output, target), output


def make_step(
    hidden: int, max_norm: float, precision: Precision = "highest"
) -> Callable[[TrainState, Array, Array, Array], tuple[TrainState, StepMetrics]]:
    """The compiled step: (state, noisy, target, learning rate) -> (state, metrics).

    When loss or gradient is not finite the state comes back unchanged and `finite` is False.
    """
    graph, _ = abstract_denoiser(hidden)
    clip, adam = clip_by_global_norm(max_norm), fused_adam()

    def step(
        state: TrainState, noisy: Array, target: Array, learning_rate: Array
    ) -> tuple[TrainState, StepMetrics]:
        with arithmetic(precision):
            gradient = jax.value_and_grad(loss_and_output, has_aux=True)
            (loss, output), grads = gradient(state.params, graph, noisy, target)
        norm = global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        clipped, _ = clip.update(grads, optax.EmptyState())
        updates, moments = adam.update(clipped, state.adam, learning_rate=learning_rate)
        params: Any = optax.apply_updates(state.params, updates)
        made = TrainState(params, cast(AdamState, moments))
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), made, state)
        wanted = peak_normalize(target)
        energy = jnp.sum(output**2) / jnp.maximum(jnp.sum(wanted**2), jnp.finfo(wanted.dtype).tiny)
        return kept, {"loss": loss, "grad_norm": norm, "energy_ratio": energy, "finite": finite}

    return jax.jit(step, donate_argnums=0)


def make_eval(
    hidden: int, precision: Precision = "highest"
) -> Callable[[Params, Array, Array], tuple[Array, Array]]:
    """The compiled evaluation: (params, noisy, target) -> (loss, output)."""
    graph, _ = abstract_denoiser(hidden)

    def evaluate(params: Params, noisy: Array, target: Array) -> tuple[Array, Array]:
        with arithmetic(precision):
            return loss_and_output(params, graph, noisy, target)

    return jax.jit(evaluate)
