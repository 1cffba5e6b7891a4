"""Weight normalisation in PyTorch; the twin of `jax_impl.model.weight_norm`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from parivox.weights_discriminator import DIRECTION, GAIN

__all__ = ["fold", "weight_norm"]


def weight_norm(gain: Float[Tensor, "o ..."], direction: Float[Tensor, "o ..."]) -> Float[Tensor, "o ..."]:
    """gain * direction / |direction|, the norm over every axis but the first (Salimans and Kingma, 2016).

    `gain` has length 1 in all axes but the first. Half precision is computed in float32 and rounded once.
    """
    wide = direction.to(torch.promote_types(direction.dtype, torch.float32))
    inverse = torch.rsqrt((wide**2).sum(tuple(range(1, wide.ndim)), keepdim=True))
    return (wide * (gain * inverse)).to(direction.dtype)


def fold(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named parameters with each gain and direction replaced by the `weight` that they make; for inference.

    What is folded is taken out of `params`, so that memory holds no weight twice.
    """
    folded = {name: leaf for name, leaf in params.items() if not name.endswith((GAIN, DIRECTION))}
    for name in [name for name in params if name.endswith(DIRECTION)]:
        owner = name.removesuffix(DIRECTION)
        gain, direction = params.pop(owner + GAIN), params.pop(name)
        folded[f"{owner}weight"] = weight_norm(gain, direction)
    return folded
