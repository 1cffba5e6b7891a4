"""Clipping and the optimizers as the DeepSpeed engine computes them, in optax; the twin of `torch_impl.optim`.

`optax.clip_by_global_norm` has no 1e-6 beside the norm, and `optax.adam` folds its constants in float64;
both differ from the engine in digits that a float32 run shows. The same holds for the other optimizers.

All optimizers share one state and one signature: `update(grads, state, params, learning_rate=..., betas=None)`
returns (updates, state). A name without a gradient keeps its weight and its moments: that is how a frozen
parameter is written, and it then has no part in the norm either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jax_impl.precision import total
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

Tree = dict[str, Array]


class AdamState(NamedTuple):
    """An optimizer's memory: updates made, first and second moments by parameter name.

    SGD and Lion keep their momentum in `exp_avg` and nothing in `exp_avg_sq`.
    """

    count: Int[Array, ""]
    exp_avg: Tree
    exp_avg_sq: Tree


def global_norm(tree: Tree) -> Float[Array, ""]:
    """L2 norm over all tensors, in their dtype."""
    return jnp.sqrt(jnp.stack([total(jnp.square(leaf)).reshape(()) for leaf in tree.values()]).sum())


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
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    adam_w_mode: bool = True,
    bias_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """DeepSpeed's FusedAdam: eps outside the root, after bias correction.

    D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015; I. Loshchilov and F. Hutter,
    "Decoupled weight decay regularization", 2019.

    `update` takes the learning rate as an extra argument. The betas are rounded to the parameters' dtype
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

    def update(grads: Tree, state: AdamState, params: Tree | None, rate: Array, betas: Any) -> Updated:
        beta1, beta2 = _betas((b1, b2), betas, rate.dtype)
        decay = jnp.asarray(weight_decay, rate.dtype)
        if weight_decay > 0 and not adam_w_mode:
            grads = {name: _given(params)[name] * decay + g for name, g in grads.items()}
        exp_avg = {k: state.exp_avg[k] * beta1 + g * (1 - beta1) for k, g in grads.items()}
        exp_avg_sq = {k: state.exp_avg_sq[k] * beta2 + g * g * (1 - beta2) for k, g in grads.items()}
        steps = (state.count + 1).astype(rate.dtype)
        correction1 = 1 - beta1**steps if bias_correction else 1.0
        correction2 = 1 / jnp.sqrt(1 - beta2**steps) if bias_correction else 1.0
        step_size = -rate / correction1
        updates = {
            k: m / (jnp.sqrt(exp_avg_sq[k]) * correction2 + eps) * step_size for k, m in exp_avg.items()
        }
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
) -> optax.GradientTransformationExtraArgs:
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

    def update(grads: Tree, state: AdamState, params: Tree | None, rate: Array, betas: Any) -> Updated:
        beta1, beta2 = _betas((b1, b2), betas, rate.dtype)
        decay = jnp.asarray(weight_decay, rate.dtype)
        exp_avg = {k: state.exp_avg[k] * beta1 + g * (1 - beta1) for k, g in grads.items()}
        exp_avg_sq = {k: state.exp_avg_sq[k] * beta2 + g * g * (1 - beta2) for k, g in grads.items()}
        step_size = rate
        if bias_correction:
            steps = (state.count + 1).astype(rate.dtype)
            step_size = rate * jnp.sqrt(_one_minus_power(beta2, steps)) / _one_minus_power(beta1, steps)
        updates = {}
        for k, m, p in _beside(exp_avg, _given(params)):
            v = exp_avg_sq[k]
            root = jnp.sqrt(v + eps) if eps_inside_sqrt else jnp.sqrt(v) + eps
            direction = m / root + decay * p
            weights, change = global_norm({k: p}), global_norm({k: direction})
            # Where a norm is 0 the quotient is not used: any number does for the divisor.
            ratio = jnp.clip(weights / jnp.where(change == 0, 1, change), min_coeff, max_coeff)
            coefficient = jnp.where((weights != 0) & (change != 0), ratio, 1)
            updates[k] = -(step_size * coefficient * direction)
        return updates, exp_avg, exp_avg_sq

    return _transformation(update, first=True, second=True)


def lion(
    b1: float = 0.9, b2: float = 0.999, weight_decay: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """DeepSpeed's FusedLion: a step of the learning rate's size against the sign of a blend.

    X. Chen et al., "Symbolic discovery of optimization algorithms", 2023. Where the blend is exactly 0 the paper
    stays; the kernel counts 0 as negative and adds the learning rate, and so does this.

    Args:
        b1: share of the momentum in the blend, where an update is not given its own `betas`.
        b2: decay of the momentum, likewise.
        weight_decay: the weight is multiplied by 1 - learning rate * weight_decay.
    """

    def update(grads: Tree, state: AdamState, params: Tree | None, rate: Array, betas: Any) -> Updated:
        beta1, beta2 = _betas((b1, b2), betas, rate.dtype)
        # The kernel multiplies the weight by this rounded number and adds the step in one rounding.
        kept = 1 - rate * jnp.asarray(weight_decay, rate.dtype)
        blend = {k: state.exp_avg[k] * beta1 + g * (1 - beta1) for k, g in grads.items()}
        updates = {k: jnp.where(c > 0, -rate, rate) for k, c in blend.items()}
        if weight_decay > 0:
            updates = {k: u - (1 - kept) * p for k, u, p in _beside(updates, _given(params))}
        return updates, {k: state.exp_avg[k] * beta2 + g * (1 - beta2) for k, g in grads.items()}, {}

    return _transformation(update, first=True, second=False)


def sgd(
    momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`torch.optim.SGD`, which the engine uses: the first update takes the gradient undamped for its momentum.

    `betas` are ignored: the engine cycles the momentum of no optimizer that has none.

    Args:
        momentum: decay of the buffer; 0 keeps no buffer.
        dampening: 1 - dampening is the share of the gradient that enters the buffer.
        weight_decay: added to the gradient, times the weight.
        nesterov: step along the gradient plus momentum times the buffer.
    """

    def update(grads: Tree, state: AdamState, params: Tree | None, rate: Array, betas: Any) -> Updated:
        del betas
        if weight_decay != 0:
            grads = {name: g + _given(params)[name] * weight_decay for name, g in grads.items()}
        if momentum == 0:
            return {name: -rate * g for name, g in grads.items()}, {}, {}
        later = {k: state.exp_avg[k] * momentum + g * (1 - dampening) for k, g in grads.items()}
        buffer = {k: jnp.where(state.count == 0, g, later[k]) for k, g in grads.items()}
        steps = {k: g + buffer[k] * momentum for k, g in grads.items()} if nesterov else buffer
        return {k: -rate * s for k, s in steps.items()}, buffer, {}

    return _transformation(update, first=momentum != 0, second=False)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a resolved DeepSpeed config.

    Raises:
        KeyError: `config.kind` is none of those that are built here.
    """
    constants = {name: value for name, value in config.params.items() if name not in ("lr", "betas")}
    if "betas" in config.params:
        constants["b1"], constants["b2"] = config.params["betas"]
    return MAKERS[config.kind](**constants)


def make_grouped(
    configs: Mapping[str, OptimizerConfig], group_of: Mapping[str, str]
) -> optax.GradientTransformationExtraArgs:
    """Several parameter groups with an optimizer each, and one state for all.

    `update` takes one learning rate (and one pair of betas) for all groups, or a mapping from group to its own.

    Args:
        configs: optimizer of each group.
        group_of: group of each parameter name.
    """
    parts = {group: make_optimizer(config) for group, config in configs.items()}

    def own(group: str, tree: Tree) -> Tree:
        return {name: leaf for name, leaf in tree.items() if group_of[name] == group}

    def init(params: Any) -> Any:
        states = [cast(AdamState, part.init(own(group, params))) for group, part in parts.items()]
        exp_avg = {name: leaf for state in states for name, leaf in state.exp_avg.items()}
        exp_avg_sq = {name: leaf for state in states for name, leaf in state.exp_avg_sq.items()}
        return AdamState(jnp.zeros((), jnp.int32), exp_avg, exp_avg_sq)

    def update(
        grads: Any, state: Any, params: Any = None, *, learning_rate: Any, betas: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        updates: Tree = {}
        after: Any = state
        for group, part in parts.items():
            if grads_here := own(group, grads):
                params_here = None if params is None else {name: params[name] for name in grads_here}
                rate, pair = (x[group] if isinstance(x, Mapping) else x for x in (learning_rate, betas))
                changes, after = part.update(
                    grads_here, after._replace(count=state.count), params_here, learning_rate=rate, betas=pair
                )
                updates |= cast(Tree, changes)
        return _complete(updates, params), after._replace(count=state.count + 1)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


MAKERS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
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
    update: Callable[[Tree, AdamState, Tree | None, Array, Any], Updated], first: bool, second: bool
) -> optax.GradientTransformationExtraArgs:
    # The part that all optimizers share: counting, rounding of the rate, names without a gradient.
    def init(params: Any) -> Any:
        zeros = [{name: jnp.zeros_like(p) for name, p in params.items()} for _ in range(2)]
        return AdamState(jnp.zeros((), jnp.int32), zeros[0] if first else {}, zeros[1] if second else {})

    def whole(
        grads: Any, state: Any, params: Any = None, *, learning_rate: Any, betas: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        rate = jnp.asarray(learning_rate, next(iter(grads.values())).dtype)
        updates, exp_avg, exp_avg_sq = update(grads, state, params, rate, betas)
        moments = {**state.exp_avg, **exp_avg}, {**state.exp_avg_sq, **exp_avg_sq}
        return _complete(updates, params), AdamState(state.count + 1, *moments)

    return optax.GradientTransformationExtraArgs(init, cast(Any, whole))


def _complete(updates: Tree, params: Tree | None) -> Tree:
    # optax adds trees of one structure: what has no gradient is moved by 0.
    return updates if params is None else {k: updates.get(k, jnp.zeros_like(p)) for k, p in params.items()}


def _betas(constant: tuple[float, float], given: Any, dtype: Any) -> tuple[Array, Array]:
    b1, b2 = constant if given is None else given
    return jnp.asarray(b1, dtype), jnp.asarray(b2, dtype)


def _given(params: Tree | None) -> Tree:
    if params is None:
        raise ValueError("this optimizer reads the weights: give `params` to update")
    return params


def _beside(tree: Tree, params: Tree) -> list[tuple[str, Array, Array]]:
    return [(name, leaf, params[name]) for name, leaf in tree.items()]


def _one_minus_power(beta: Array, steps: Array) -> Array:
    # FusedLamb takes the power in double precision; 1 - beta**steps would lose digits at the first steps.
    return -jnp.expm1(steps * jnp.log1p(beta - 1))
