"""Clipping and the optimizers as the DeepSpeed engine computes them, in plain PyTorch; the twin of `jax_impl.optim`.

Training goes through DeepSpeed itself (`torch_impl.engine`). This is the same arithmetic in the open: it also
runs in float64, where the engine's CPU kernels do not, and without DeepSpeed.

All optimizers share one state and one signature: `update(grads, state, learning_rate, params, betas)` returns
(updates, state). A name without a gradient keeps its weight and its moments: that is how a frozen parameter
is written, and it then has no part in the norm either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from parivox.deepspeed_config import OptimizerConfig

__all__ = [
    "AdamState",
    "clip_by_global_norm",
    "fused_adam",
    "global_norm",
    "lamb",
    "lion",
    "make_grouped",
    "make_optimizer",
    "sgd",
]

Tree = dict[str, Tensor]


class AdamState(NamedTuple):
    """An optimizer's memory: updates made, first and second moments by parameter name.

    SGD and Lion keep their momentum in `exp_avg` and nothing in `exp_avg_sq`.
    """

    count: int
    exp_avg: Tree
    exp_avg_sq: Tree


class Adam(NamedTuple):
    """A pair of functions in the manner of optax."""

    init: Callable[[Tree], AdamState]
    update: Callable[..., tuple[Tree, AdamState]]


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


def fused_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    adam_w_mode: bool = True,
    bias_correction: bool = True,
) -> Adam:
    """DeepSpeed's FusedAdam: eps outside the root, after bias correction.

    D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015; I. Loshchilov and F. Hutter,
    "Decoupled weight decay regularization", 2019.

    `update` takes the learning rate as an argument. The betas are rounded to the parameters' dtype
    before 1 - beta is formed, as in the engine's kernels: in float32 1 - 0.999 is 1.3e-5 away from 0.001,
    and so is every second moment.

    Args:
        b1: decay of the first moment, where an update is not given its own `betas`.
        b2: decay of the second moment, likewise.
        eps: added to the root of the second moment.
        weight_decay: strength of the decay; above 0, `update` needs the parameters.
        adam_w_mode: shrink the weight beside the step (AdamW); False adds the decay to the gradient (L2).
        bias_correction: whether the moments are corrected for their start at zero.
    """

    def update(grads: Tree, state: AdamState, params: Tree | None, rate: Tensor, betas: Any) -> Updated:
        beta1, beta2 = _betas((b1, b2), betas, rate)
        decay = rate.new_tensor(weight_decay)
        if weight_decay > 0 and not adam_w_mode:
            grads = {name: _given(params)[name] * decay + g for name, g in grads.items()}
        exp_avg = {k: state.exp_avg[k] * beta1 + g * (1 - beta1) for k, g in grads.items()}
        exp_avg_sq = {k: state.exp_avg_sq[k] * beta2 + g * g * (1 - beta2) for k, g in grads.items()}
        steps = state.count + 1
        correction1 = 1 - beta1**steps if bias_correction else 1.0
        correction2 = 1 / torch.sqrt(1 - beta2**steps) if bias_correction else 1.0
        step_size = -rate / correction1
        updates = {k: m / (exp_avg_sq[k].sqrt() * correction2 + eps) * step_size for k, m in exp_avg.items()}
        if weight_decay > 0 and adam_w_mode:
            # The kernel rounds the weight twice, after the decay and after the step; so must the sum.
            updates = {k: p + -rate * decay * p + u - p for k, u, p in _beside(updates, _given(params))}
        return updates, exp_avg, exp_avg_sq

    return _transformation(update, first=True, second=True)


def lamb(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    bias_correction: bool = True,
    max_coeff: float = 10.0,
    min_coeff: float = 0.01,
    eps_inside_sqrt: bool = False,
) -> Adam:
    """DeepSpeed's FusedLamb: Adam's direction, scaled for each tensor by the norm of its weights over its own.

    Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020. Unlike the
    paper the kernel corrects no moment: both corrections go into the step size, after the coefficient is found.

    Args:
        b1: decay of the first moment, where an update is not given its own `betas`.
        b2: decay of the second moment, likewise.
        eps: added to the root of the second moment, or under it.
        weight_decay: added to the direction, times the weight.
        bias_correction: whether the step size makes up for the moments' start at zero.
        max_coeff: upper bound of the coefficient.
        min_coeff: lower bound of the coefficient.
        eps_inside_sqrt: whether eps stands under the root.
    """

    def update(grads: Tree, state: AdamState, params: Tree | None, rate: Tensor, betas: Any) -> Updated:
        beta1, beta2 = _betas((b1, b2), betas, rate)
        decay = rate.new_tensor(weight_decay)
        exp_avg = {k: state.exp_avg[k] * beta1 + g * (1 - beta1) for k, g in grads.items()}
        exp_avg_sq = {k: state.exp_avg_sq[k] * beta2 + g * g * (1 - beta2) for k, g in grads.items()}
        step_size = rate
        if bias_correction:
            steps = state.count + 1
            step_size = rate * torch.sqrt(_one_minus_power(beta2, steps)) / _one_minus_power(beta1, steps)
        updates = {}
        for k, m, p in _beside(exp_avg, _given(params)):
            v = exp_avg_sq[k]
            root = torch.sqrt(v + eps) if eps_inside_sqrt else torch.sqrt(v) + eps
            direction = m / root + decay * p
            weights, change = p.norm(), direction.norm()
            ratio = (weights / change).clamp(min_coeff, max_coeff)
            coefficient = torch.where((weights != 0) & (change != 0), ratio, 1)
            updates[k] = -(step_size * coefficient * direction)
        return updates, exp_avg, exp_avg_sq

    return _transformation(update, first=True, second=True)


def lion(b1: float = 0.9, b2: float = 0.999, weight_decay: float = 0.0) -> Adam:
    """DeepSpeed's FusedLion: a step of the learning rate's size against the sign of a blend.

    X. Chen et al., "Symbolic discovery of optimization algorithms", 2023. Where the blend is exactly 0 the paper
    stays; the kernel counts 0 as negative and adds the learning rate, and so does this.

    Args:
        b1: share of the momentum in the blend, where an update is not given its own `betas`.
        b2: decay of the momentum, likewise.
        weight_decay: the weight is multiplied by 1 - learning rate * weight_decay.
    """

    def update(grads: Tree, state: AdamState, params: Tree | None, rate: Tensor, betas: Any) -> Updated:
        beta1, beta2 = _betas((b1, b2), betas, rate)
        # The kernel multiplies the weight by this rounded number and adds the step in one rounding.
        kept = 1 - rate * rate.new_tensor(weight_decay)
        blend = {k: state.exp_avg[k] * beta1 + g * (1 - beta1) for k, g in grads.items()}
        updates = {k: torch.where(c > 0, -rate, rate) for k, c in blend.items()}
        if weight_decay > 0:
            updates = {k: u - (1 - kept) * p for k, u, p in _beside(updates, _given(params))}
        return updates, {k: state.exp_avg[k] * beta2 + g * (1 - beta2) for k, g in grads.items()}, {}

    return _transformation(update, first=True, second=False)


def sgd(
    momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
) -> Adam:
    """`torch.optim.SGD`, which the engine uses: the first update takes the gradient undamped for its momentum.

    `betas` are ignored: the engine cycles the momentum of no optimizer that has none.

    Args:
        momentum: decay of the buffer; 0 keeps no buffer.
        dampening: 1 - dampening is the share of the gradient that enters the buffer.
        weight_decay: added to the gradient, times the weight.
        nesterov: step along the gradient plus momentum times the buffer.
    """

    def update(grads: Tree, state: AdamState, params: Tree | None, rate: Tensor, betas: Any) -> Updated:
        del betas
        if weight_decay != 0:
            grads = {name: g + _given(params)[name] * weight_decay for name, g in grads.items()}
        if momentum == 0:
            return {name: -rate * g for name, g in grads.items()}, {}, {}
        later = {k: state.exp_avg[k] * momentum + g * (1 - dampening) for k, g in grads.items()}
        buffer = dict(grads) if state.count == 0 else later
        steps = {k: g + buffer[k] * momentum for k, g in grads.items()} if nesterov else buffer
        return {k: -rate * s for k, s in steps.items()}, buffer, {}

    return _transformation(update, first=momentum != 0, second=False)


def make_optimizer(config: OptimizerConfig) -> Adam:
    """The optimizer of a resolved DeepSpeed config.

    Raises:
        KeyError: `config.kind` is none of those that are built here.
    """
    constants = {name: value for name, value in config.params.items() if name not in ("lr", "betas")}
    if "betas" in config.params:
        constants["b1"], constants["b2"] = config.params["betas"]
    return MAKERS[config.kind](**constants)


def make_grouped(configs: Mapping[str, OptimizerConfig], group_of: Mapping[str, str]) -> Adam:
    """Several parameter groups with an optimizer each, and one state for all.

    `update` takes one learning rate (and one pair of betas) for all groups, or a mapping from group to its own.

    Args:
        configs: optimizer of each group.
        group_of: group of each parameter name.
    """
    parts = {group: make_optimizer(config) for group, config in configs.items()}

    def own(group: str, tree: Tree) -> Tree:
        return {name: leaf for name, leaf in tree.items() if group_of[name] == group}

    def init(params: Tree) -> AdamState:
        states = [part.init(own(group, params)) for group, part in parts.items()]
        exp_avg = {name: leaf for state in states for name, leaf in state.exp_avg.items()}
        exp_avg_sq = {name: leaf for state in states for name, leaf in state.exp_avg_sq.items()}
        return AdamState(0, exp_avg, exp_avg_sq)

    def update(
        grads: Tree, state: AdamState, learning_rate: Any, params: Tree | None = None, betas: Any = None
    ) -> tuple[Tree, AdamState]:
        updates, after = {}, state
        for group, part in parts.items():
            if grads_here := own(group, grads):
                params_here = None if params is None else {name: params[name] for name in grads_here}
                rate, pair = (x[group] if isinstance(x, Mapping) else x for x in (learning_rate, betas))
                changes, after = part.update(
                    grads_here, after._replace(count=state.count), rate, params_here, pair
                )
                updates |= changes
        return _complete(updates, params), after._replace(count=state.count + 1)

    return Adam(init, update)


MAKERS: dict[str, Callable[..., Adam]] = {
    "adam": fused_adam,
    "adamw": fused_adam,
    "lamb": lamb,
    "lion": lion,
    "sgd": sgd,
}
"""What makes an optimizer of each kind; its arguments are the parameters in a config."""

Updated = tuple[Tree, Tree, Tree]
"""Updates and the new first and second moments, of the names that have a gradient."""


def _transformation(
    update: Callable[[Tree, AdamState, Tree | None, Tensor, Any], Updated], first: bool, second: bool
) -> Adam:
    # The part that all optimizers share: counting, rounding of the rate, names without a gradient.
    def init(params: Tree) -> AdamState:
        zeros = [{name: torch.zeros_like(p) for name, p in params.items()} for _ in range(2)]
        return AdamState(0, zeros[0] if first else {}, zeros[1] if second else {})

    def whole(
        grads: Tree, state: AdamState, learning_rate: Any, params: Tree | None = None, betas: Any = None
    ) -> tuple[Tree, AdamState]:
        like = next(iter(grads.values()))
        rate = torch.as_tensor(learning_rate, dtype=like.dtype, device=like.device)
        updates, exp_avg, exp_avg_sq = update(grads, state, params, rate, betas)
        moments = {**state.exp_avg, **exp_avg}, {**state.exp_avg_sq, **exp_avg_sq}
        return _complete(updates, params), AdamState(state.count + 1, *moments)

    return Adam(init, whole)


def _complete(updates: Tree, params: Tree | None) -> Tree:
    # As in JAX, where trees of one structure are added: what has no gradient is moved by 0.
    return updates if params is None else {k: updates.get(k, torch.zeros_like(p)) for k, p in params.items()}


def _betas(constant: tuple[float, float], given: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    b1, b2 = constant if given is None else given
    beta1, beta2 = (torch.as_tensor(b, dtype=like.dtype, device=like.device) for b in (b1, b2))
    return beta1, beta2


def _given(params: Tree | None) -> Tree:
    if params is None:
        raise ValueError("this optimizer reads the weights: give `params` to update")
    return params


def _beside(tree: Tree, params: Tree) -> list[tuple[str, Tensor, Tensor]]:
    return [(name, leaf, params[name]) for name, leaf in tree.items()]


def _one_minus_power(beta: Tensor, steps: int) -> Tensor:
    # FusedLamb takes the power in double precision; 1 - beta**steps would lose digits at the first steps.
    return -torch.expm1(steps * torch.log1p(beta - 1))
