"""Clipping and Adam as the DeepSpeed engine computes them, in optax; the twin of `torch_impl.optim`.

`optax.clip_by_global_norm` has no 1e-6 beside the norm, and `optax.adam` folds its constants in float64;
both differ from the engine in digits that a float32 run shows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

__all__ = ["AdamState", "clip_by_global_norm", "fused_adam", "global_norm"]

Tree = dict[str, Array]


class AdamState(NamedTuple):
    """Adam's memory: updates made, first and second moments by parameter name."""

    count: Int[Array, ""]
    exp_avg: Tree
    exp_avg_sq: Tree


def global_norm(tree: Tree) -> Float[Array, ""]:
    """L2 norm over all tensors, in their dtype."""
    return jnp.sqrt(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in tree.values()]).sum())


def clip_by_global_norm(max_norm: float, margin: float = 1e-6) -> optax.GradientTransformation:
    """Multiply gradients by min(1, max_norm / (norm + margin)); DeepSpeed's margin is 1e-6. 0 means no clipping."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        if max_norm <= 0:
            return grads, state
        factor = jnp.minimum(1.0, max_norm / (global_norm(grads) + margin))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), cast(Any, update))


def fused_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """DeepSpeed's FusedAdam without weight decay: eps outside the root, after bias correction.

    D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015.

    `update` takes the learning rate as an extra argument. The betas are rounded to the parameters' dtype
    before 1 - beta is formed, as in the engine's kernels: in float32 1 - 0.999 is 1.3e-5 away from 0.001,
    and so is every second moment.
    """

    def init(params: Any) -> Any:
        return AdamState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(jnp.zeros_like, params),
        )

    def update(
        grads: Any, state: Any, params: Any = None, *, learning_rate: Array, **_: Any
    ) -> tuple[Any, Any]:
        del params
        count = state.count + 1
        dtype = next(iter(grads.values())).dtype
        beta1, beta2 = jnp.asarray(b1, dtype), jnp.asarray(b2, dtype)
        exp_avg = jax.tree.map(lambda m, g: m * beta1 + g * (1 - beta1), state.exp_avg, grads)
        exp_avg_sq = jax.tree.map(lambda v, g: v * beta2 + g * g * (1 - beta2), state.exp_avg_sq, grads)
        steps = count.astype(dtype)
        correction1 = 1 - beta1**steps
        correction2 = 1 / jnp.sqrt(1 - beta2**steps)
        step_size = -learning_rate.astype(dtype) / correction1
        updates = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) * correction2 + eps) * step_size, exp_avg, exp_avg_sq
        )
        return updates, AdamState(count, exp_avg, exp_avg_sq)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
