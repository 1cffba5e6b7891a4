"""Weight normalisation in JAX; the twin of `torch_impl.model.weight_norm`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_impl.precision import spread, total
from parivox.weights_discriminator import DIRECTION, GAIN

__all__ = ["fold", "weight_norm"]


def weight_norm(gain: Float[Array, "o ..."], direction: Float[Array, "o ..."]) -> Float[Array, "o ..."]:
    """gain * direction / |direction|, the norm over every axis but the first (Salimans and Kingma, 2016).

    `gain` has length 1 in all axes but the first. Half precision is computed in float32 and rounded once.
    """
    wide = direction.astype(jnp.promote_types(direction.dtype, jnp.float32))
    inverse = jax.lax.rsqrt(total(wide**2, range(1, wide.ndim)))
    return (wide * spread(gain * inverse, wide.shape)).astype(direction.dtype)


def fold(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Named parameters with each gain and direction replaced by the `weight` that they make; for inference.

    What is folded is taken out of `params`, so that memory holds no weight twice.
    """
    folded = {name: leaf for name, leaf in params.items() if not name.endswith((GAIN, DIRECTION))}
    for name in [name for name in params if name.endswith(DIRECTION)]:
        owner = name.removesuffix(DIRECTION)
        gain, direction = params.pop(owner + GAIN), params.pop(name)
        folded[f"{owner}weight"] = jax.jit(weight_norm)(gain, direction)
    return folded
