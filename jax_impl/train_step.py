"""Training state and step in JAX; the twin of `torch_impl.train_step`.

The step is a pure function of (state, rows, rates), compiled once, with the state donated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jax_impl.objective import Losses, Objective, Told, objective_of, statistics_of
from jax_impl.optim import AdamState, clip_by_global_norm, global_norm, make_optimizer
from jax_impl.precision import arithmetic
from jax_impl.sharding import Mean, data_parallel, make_sharded_step
from jax_impl.weights import Params
from parivox.backend import Precision, moments_of
from parivox.deepspeed_config import OptimizerConfig, OptimizerKind, TrainConfig
from parivox.hparams import HParams
from parivox.stages import JUDGE, has_judge, structure

__all__ = ["Player", "TrainState", "make_step", "make_eval"]

StepMetrics = dict[str, Any]

COMPUTE = {"fp32": None, "fp16": "float16", "bf16": "bfloat16"}
"""Precision of a config -> dtype of the network's weights and images; sound stays float32 around it."""


class Player(NamedTuple):
    """Parameters and the optimizer's memory of them; `adam.count` is the number of updates made."""

    params: Params
    adam: AdamState


class TrainState(NamedTuple):
    """Everything a step changes, and what stays as it is.

    Attributes:
        params: what is trained, by public name; the discriminator's under names that begin with `discriminator.`.
        adam: the optimizer's memory of the model.
        judge: that of the discriminator; None without one.
        others: parameters that are not trained, buffers, running means and variances.
    """

    params: Params
    adam: AdamState
    judge: AdamState | None
    others: Params


class Drive(NamedTuple):
    """What drives one optimizer's update.

    Attributes:
        rate: learning rate.
        betas: a pair, or None for the optimizer's own.
        scales: None, or with a scaled loss the factor on it and the one that the gradients are divided by.
    """

    rate: Any
    betas: Any = None
    scales: Any = None


def head_start(config: TrainConfig) -> int:
    """Updates by which the optimizer counts ahead of the run.

    Without ZeRO, DeepSpeed's wrapper for float16 and bfloat16 steps once with gradients of zero when it is built.
    """
    return int(config.precision != "fp32" and config.zero_stage == 0)


@dataclass(frozen=True)
class Recipe:
    """What a compiled step depends on; hashable, so that equal runs share a program.

    Attributes:
        hp: what the programs depend on of the hyperparameters, see `parivox.stages.structure`.
        optimizer: kind of the optimizer.
        constants: its parameters, by name.
        max_norm: largest norm of the gradients; 0 means no bound.
        accumulation: micro batches of an update.
        compute: dtype of the network; None computes in the parameters' own.
        scaled: whether the loss is scaled, as in float16.
        head_start: updates by which Adam's bias correction is ahead of the count.
        checkpointed: whether the UNet's blocks are computed again in the backward pass.
        precision: arithmetic of convolutions and matrix products.
        with_judge: whether there is a discriminator with an optimizer of its own.
        judged: whether it takes part in the update.
        device: where it runs: `cpu`, `gpu` or `tpu`.
    """

    hp: HParams
    optimizer: OptimizerKind = "adam"
    constants: tuple[tuple[str, Any], ...] = ()
    max_norm: float = 0.0
    accumulation: int = 1
    compute: str | None = None
    scaled: bool = False
    head_start: int = 0
    checkpointed: bool = False
    precision: Precision = "highest"
    with_judge: bool = False
    judged: bool = False
    device: str = ""

    @classmethod
    def of(
        cls,
        hp: HParams,
        config: TrainConfig,
        precision: Precision = "highest",
        judged: bool = False,
        device: str = "",
    ) -> Recipe:
        """The recipe of a resolved DeepSpeed config."""
        return cls(
            structure(hp),
            config.optimizer.kind,
            tuple(sorted(config.optimizer.params.items())),
            config.gradient_clipping,
            config.accumulation_steps,
            COMPUTE[config.precision],
            config.precision == "fp16",
            head_start(config),
            config.checkpoint_activations,
            precision,
            has_judge(hp),
            judged,
            device,
        )

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer with its parameters."""
        return OptimizerConfig(self.optimizer, dict(self.constants))


def make_step(
    recipe: Recipe, mesh: Mesh | None = None, stage: int = 0, mean: Mean | None = None
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The compiled step: (state, rows, drive, judge's drive) -> (state, metrics).

    Losses, norm and energy are those of all micro batches together. When a loss or gradient is not finite the state
    comes back unchanged and `finite` is False. With a discriminator, model and discriminator are updated from
    gradients of the same moment.

    Args:
        recipe: what the program depends on.
        mesh: devices that share the rows, each with its block; None for one device. Metrics then have the losses of
            the devices too.
        stage: of ZeRO, on several devices.
        mean: how the gradients of several devices are averaged.
    """
    objective = objective_of(recipe.hp, recipe.judged, recipe.checkpointed)
    gradients: Any = partial(_gradients, recipe, objective)
    if mesh is not None:
        gradients = shared(recipe, objective, mesh, stage, mean)
    update = make_update(recipe)

    def step(
        state: TrainState, rows: Mapping[str, Array], drive: Drive, judge_drive: Drive | None = None
    ) -> tuple[TrainState, StepMetrics]:
        trained = {name: state.params[name] for name in objective.shapes}
        others = {**state.others, **{n: leaf for n, leaf in state.params.items() if n not in trained}}
        with arithmetic(recipe.precision, recipe.device):
            told, grads, *losses = gradients(trained, others, rows, drive.scales)
        kept, metrics = _moved(update, state, told, grads, drive, judge_drive)
        produced, wanted = told.energies
        energy = produced / jnp.maximum(wanted, jnp.finfo(wanted.dtype).tiny)
        metrics |= {"energy_ratio": energy, "named": {**told.losses, **told.judge_losses}}
        metrics["watched"] = {**told.watched, **metrics["watched"]}
        return kept, {**metrics, "losses": losses[0]} if losses else metrics

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    return make_sharded_step(step, abstract_state(recipe), stage, mesh)


def abstract_state(recipe: Recipe) -> TrainState:
    """The shapes of a state."""
    hp, kept = recipe.hp, moments_of(recipe.optimizer_config)
    known: dict[str, Any] = dict(
        objective_of(hp, recipe.with_judge).shapes
    )  # shapes stand for the arrays here
    own = {name: leaf for name, leaf in known.items() if not name.startswith(JUDGE)}
    theirs = {name: leaf for name, leaf in known.items() if name.startswith(JUDGE)}
    adam, judge = (
        AdamState(_count(), *(part if group in kept else {} for group in ("exp_avg", "exp_avg_sq")))
        for part in (own, theirs)
    )
    others: dict[str, Any] = dict(objective_of(hp).others)
    return TrainState(known, adam, judge if recipe.with_judge else None, others)


def _count() -> Any:
    return jax.ShapeDtypeStruct((), jnp.int32)


def _moved(
    update: Callable[..., tuple[Player, StepMetrics]],
    state: TrainState,
    told: Told,
    grads: Params,
    drive: Drive,
    judge_drive: Drive | None,
) -> tuple[TrainState, StepMetrics]:
    """Update the model, its discriminator where that has gradients, and the running statistics: all or nothing."""

    def part(named: Params, judges: bool) -> Params:
        return {name: leaf for name, leaf in named.items() if name.startswith(JUDGE) == judges}

    loss = _total(told.losses)
    own = Player(part(state.params, False), state.adam)
    made, metrics = update(own, loss, part(grads, False), drive)
    judge, watched = None, {}
    if judge_drive is not None and state.judge is not None:
        judge_loss = _total(told.judge_losses)
        theirs = Player(part(state.params, True), state.judge)
        judge, theirs_told = update(theirs, judge_loss, part(grads, True), judge_drive)
        metrics["finite"] &= theirs_told["finite"]
        watched = {"d_loss": judge_loss, "d_grad_norm": theirs_told["grad_norm"]}
    after = TrainState(
        {**state.params, **made.params, **(judge.params if judge else {})},
        made.adam,
        judge.adam if judge else state.judge,
        {**state.others, **told.statistics},
    )
    kept = jax.tree.map(lambda new, old: jnp.where(metrics["finite"], new, old), after, state)
    return kept, {"loss": loss, **metrics, "watched": watched}


def _total(losses: Losses) -> Array:
    return jnp.sum(jnp.stack(list(losses.values())))


def make_update(recipe: Recipe) -> Callable[..., tuple[Player, StepMetrics]]:
    """What turns gradients into an update: (player, loss, gradients, drive) -> (player, metrics).

    The gradients are those of the scaled loss, in the network's dtype. The update is made whatever the gradients
    are; `finite` says whether it may be kept.
    """
    # The margin beside the norm is 1e-6 with and without a loss scale.
    clip = clip_by_global_norm(recipe.max_norm)
    optimizer = make_optimizer(recipe.optimizer_config)

    def update(player: Player, loss: Array, grads: Params, drive: Drive) -> tuple[Player, StepMetrics]:
        # Gradients of a half-precision network are summed in its dtype and used in float32.
        grads = {name: g.astype(player.params[name].dtype) for name, g in grads.items()}
        norm = global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        if drive.scales is None:
            clipped, _ = clip.update(grads, optax.EmptyState())
        else:
            clipped = _unscaled(grads, norm, drive.scales[1], recipe.max_norm)
            norm = norm / drive.scales[0]
        ahead = player.adam._replace(count=player.adam.count + recipe.head_start)
        updates, moments = optimizer.update(
            clipped, ahead, player.params, learning_rate=drive.rate, betas=drive.betas
        )
        params: Any = optax.apply_updates(player.params, updates)
        moments = cast(AdamState, moments)._replace(count=player.adam.count + 1)
        return Player(params, moments), {"grad_norm": norm, "finite": finite}

    return update


def shared(
    recipe: Recipe, objective: Objective, mesh: Mesh, stage: int, mean: Mean | None = None
) -> Callable[..., Any]:
    """What `_gradients` does, over several devices: (params, others, rows, scales) -> the same, and their losses.

    Losses are means over the devices, and so are the running means and variances that they come to.
    """

    def on_one(params: Params, rows: Mapping[str, Array], others: Params, scales: Array | None) -> Any:
        told, grads = _gradients(recipe, objective, params, others, rows, scales)
        loss = _total(told.losses)
        return (loss, jax.tree.map(lambda leaf: leaf[None], (loss, told))), grads

    on_all = data_parallel(on_one, objective.shapes, stage, mesh, mean)

    def gradients(
        params: Params, others: Params, rows: Mapping[str, Array], scales: Array | None = None
    ) -> Any:
        (_, (losses, parts)), grads = on_all(params, rows, whole=(others, scales))
        told = jax.tree.map(lambda leaf: leaf.mean(0), parts)
        return told._replace(energies=tuple(part.sum(0) for part in parts.energies)), grads, losses

    return gradients


def micro_share(loss: Array, steps: int) -> Array:
    """What a micro batch's loss adds to that of an update, which is the mean over its `steps` passes."""
    return loss / steps if steps > 1 else loss


def _gradients(
    recipe: Recipe,
    objective: Objective,
    params: Params,
    others: Params,
    rows: Mapping[str, Array],
    scales: Array | None,
) -> tuple[Told, Params]:
    """What the objective tells of all micro batches, and gradients of the (scaled) sum of the losses.

    Running means and variances go from one micro batch to the next.
    """
    if recipe.compute is not None:
        params = {name: leaf.astype(recipe.compute) for name, leaf in params.items()}
    factor = None if scales is None else scales[0]

    def scaled_loss(params: Params, others: Params, rows: Mapping[str, Array]) -> tuple[Array, Told]:
        loss, told = objective(params, others, rows)
        # The engine divides first and then scales, and adds the gradients of the shares up.
        share = micro_share(loss, recipe.accumulation)
        return share if factor is None else share * factor, told

    def one(statistics: Params, rows: Mapping[str, Array]) -> tuple[Told, Params]:
        (_, told), grads = jax.value_and_grad(scaled_loss, has_aux=True)(
            params, {**others, **statistics}, rows
        )
        return told, grads

    first = statistics_of(others)
    if recipe.accumulation == 1:
        return one(first, rows)

    def add(carried: tuple[Params, Params], part: Mapping[str, Array]) -> tuple[tuple[Params, Params], Told]:
        statistics, total = carried
        told, grads = one(statistics, part)
        statistics = {**statistics, **told.statistics}
        return (statistics, jax.tree.map(jnp.add, total, grads)), told._replace(statistics={})

    parts = {name: a.reshape(recipe.accumulation, -1, *a.shape[1:]) for name, a in rows.items()}
    (statistics, total), told = jax.lax.scan(add, (first, jax.tree.map(jnp.zeros_like, params)), parts)
    energies = tuple(energy.sum(0) for energy in told.energies)
    means = jax.tree.map(lambda leaf: leaf.mean(0), told)
    return means._replace(energies=energies, statistics=statistics), total


def _unscaled(grads: Params, norm: Array, scale: Array, max_norm: float) -> Params:
    """Gradients divided by the loss scale and clipped, in one multiplication, as DeepSpeed's wrapper does."""
    divisor = scale
    if max_norm > 0:
        divisor = scale * jnp.maximum(1.0, (norm / scale + 1e-6) / max_norm)
    return jax.tree.map(lambda g: g * (1.0 / divisor), grads)


def make_eval(
    hp: HParams, precision: Precision = "highest", compute: str | None = None, device: str = ""
) -> Callable[[Params, Params, Mapping[str, Array]], tuple[Losses, Losses]]:
    """The compiled evaluation: (params, others, rows) -> (losses, sounds).

    Args:
        hp: of the model.
        precision: of convolutions and matrix products.
        compute: dtype of the network; None computes in that of the weights.
        device: where it runs, `cpu`, `gpu` or `tpu`.
    """
    objective = objective_of(hp)

    def evaluate(params: Params, others: Params, rows: Mapping[str, Array]) -> tuple[Losses, Losses]:
        if compute is not None:
            params = {name: leaf.astype(compute) for name, leaf in params.items()}
        with arithmetic(precision, device):
            return objective.held_out(params, others, rows)

    return jax.jit(evaluate)
