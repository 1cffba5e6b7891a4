"""Clipping and Adam as the DeepSpeed engine computes them, in plain PyTorch; the twin of `jax_impl.optim`.

Training goes through DeepSpeed itself (`torch_impl.engine`). This is the same arithmetic in the open: it also
runs in float64, where the engine's CPU kernels do not, and without DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["AdamState", "clip_by_global_norm", "fused_adam", "global_norm"]

Tree = dict[str, Tensor]


class AdamState(NamedTuple):
    """Adam's memory: updates made, first and second moments by parameter name."""

    count: int
    exp_avg: Tree
    exp_avg_sq: Tree


class Adam(NamedTuple):
    """A pair of functions in the manner of optax."""

    init: Callable[[Tree], AdamState]
    update: Callable[[Tree, AdamState, Tensor], tuple[Tree, AdamState]]


def global_norm(tree: Tree) -> Float[Tensor, ""]:
    """L2 norm over all tensors, in their dtype."""
    return torch.stack([leaf.norm() for leaf in tree.values()]).square().sum().sqrt()


def clip_by_global_norm(max_norm: float, margin: float = 1e-6) -> Callable[[Tree], Tree]:
    """Multiply gradients by min(1, max_norm / (norm + margin)); DeepSpeed's margin is 1e-6. 0 means no clipping."""

    def update(grads: Tree) -> Tree:
        if max_norm <= 0:
            return grads
        factor = (max_norm / (global_norm(grads) + margin)).clamp(max=1.0)
        return {name: g * factor for name, g in grads.items()}

    return update


def fused_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Adam:
    """DeepSpeed's FusedAdam without weight decay: eps outside the root, after bias correction.

    D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015.

    `update` takes the learning rate as an argument. The betas are rounded to the parameters' dtype
    before 1 - beta is formed, as in the engine's kernels: in float32 1 - 0.999 is 1.3e-5 away from 0.001,
    and so is every second moment.
    """

    def init(params: Tree) -> AdamState:
        zeros = {name: torch.zeros_like(p) for name, p in params.items()}
        return AdamState(0, zeros, {name: z.clone() for name, z in zeros.items()})

    def update(grads: Tree, state: AdamState, learning_rate: Tensor) -> tuple[Tree, AdamState]:
        count = state.count + 1
        like = next(iter(grads.values()))
        beta1, beta2 = like.new_tensor(b1), like.new_tensor(b2)
        exp_avg = {k: state.exp_avg[k] * beta1 + g * (1 - beta1) for k, g in grads.items()}
        exp_avg_sq = {k: state.exp_avg_sq[k] * beta2 + g * g * (1 - beta2) for k, g in grads.items()}
        correction1 = 1 - beta1**count
        correction2 = 1 / torch.sqrt(1 - beta2**count)
        step_size = -learning_rate.to(like) / correction1
        updates = {k: m / (exp_avg_sq[k].sqrt() * correction2 + eps) * step_size for k, m in exp_avg.items()}
        return updates, AdamState(count, exp_avg, exp_avg_sq)

    return Adam(init, update)
