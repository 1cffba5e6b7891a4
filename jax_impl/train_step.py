"""Training state and step of the denoiser in JAX; the twin of `torch_impl.train_step`.

The step is a pure function of (state, batch, learning rate, betas, loss scale), compiled once, with the state donated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jax_impl.features import peak_normalize
from jax_impl.model.denoiser import Denoiser, denoiser_loss
from jax_impl.optim import AdamState, clip_by_global_norm, global_norm, make_optimizer
from jax_impl.precision import arithmetic
from jax_impl.sharding import Mean, data_parallel, make_sharded_step
from jax_impl.weights import Params, abstract_denoiser
from parivox.backend import Precision, moments_of
from parivox.deepspeed_config import OptimizerConfig, OptimizerKind, TrainConfig

__all__ = ["TrainState", "loss_and_output", "make_eval", "make_step"]

StepMetrics = dict[str, Array]

COMPUTE = {"fp32": None, "fp16": "float16", "bf16": "bfloat16"}
"""Precision of a config -> dtype of the network's weights and images; sound stays float32 around it."""


class TrainState(NamedTuple):
    """Everything a step changes; `adam.count` is the number of updates made."""

    params: Params
    adam: AdamState


def head_start(config: TrainConfig) -> int:
    """Updates by which the optimizer counts ahead of the run.

    Without ZeRO, DeepSpeed's wrapper for float16 and bfloat16 steps once with gradients of zero when it is built.
    """
    return int(config.precision != "fp32" and config.zero_stage == 0)


def bind(graph: nnx.GraphDef, params: Params) -> Denoiser:
    """The module with these parameters."""
    flat = [
        (tuple(int(p) if p.isdigit() else p for p in name.split(".")), nnx.Param(leaf))
        for name, leaf in params.items()
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def loss_and_output(
    params: Params,
    graph: nnx.GraphDef,
    noisy: Float[Array, "b t"],
    target: Float[Array, "b t"],
    checkpointed: bool = False,
) -> tuple[Float[Array, ""], Float[Array, "b t"]]:
    """The training loss and the denoised batch; `checkpointed` trades time for memory and changes no number."""
    module = bind(graph, params)
    module.net.checkpointed = checkpointed
    output = module(noisy)
    return denoiser_loss(output, target), output


@dataclass(frozen=True)
class Recipe:
    """What a compiled step depends on; hashable, so that equal runs share a program.

    Attributes:
        hidden: width of the network.
        optimizer: kind of the optimizer.
        constants: its parameters, by name.
        max_norm: largest norm of the gradients; 0 means no bound.
        accumulation: micro batches of an update.
        compute: dtype of the network; None computes in the parameters' own.
        scaled: whether the loss is scaled, as in float16.
        head_start: updates by which Adam's bias correction is ahead of the count.
        checkpointed: whether the UNet's blocks are computed again in the backward pass.
        precision: arithmetic of convolutions and matrix products.
    """

    hidden: int
    optimizer: OptimizerKind = "adam"
    constants: tuple[tuple[str, Any], ...] = ()
    max_norm: float = 0.0
    accumulation: int = 1
    compute: str | None = None
    scaled: bool = False
    head_start: int = 0
    checkpointed: bool = False
    precision: Precision = "highest"

    @classmethod
    def of(cls, hidden: int, config: TrainConfig, precision: Precision = "highest") -> Recipe:
        """The recipe of a resolved DeepSpeed config."""
        return cls(
            hidden,
            config.optimizer.kind,
            tuple(sorted(config.optimizer.params.items())),
            config.gradient_clipping,
            config.accumulation_steps,
            COMPUTE[config.precision],
            config.precision == "fp16",
            head_start(config),
            config.checkpoint_activations,
            precision,
        )

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer with its parameters."""
        return OptimizerConfig(self.optimizer, dict(self.constants))


def make_step(
    recipe: Recipe, mesh: Mesh | None = None, stage: int = 0, mean: Mean | None = None
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The compiled step: (state, noisy, target, learning rate, betas, scales) -> (state, metrics).

    `betas` is a pair, or None for the optimizer's own. `scales` is None, or with a scaled loss the factor on it and
    the one that the gradients are divided by. Loss, norm and energy are those of all micro batches together.
    When loss or gradient is not finite the state comes back unchanged and `finite` is False.

    Args:
        recipe: what the program depends on.
        mesh: devices that share the rows, each with its block; None for one device. Metrics then have the losses of
            the devices too.
        stage: of ZeRO, on several devices.
        mean: how the gradients of several devices are averaged.
    """
    graph, shapes = abstract_denoiser(recipe.hidden)
    gradients = partial(_gradients, recipe, graph) if mesh is None else shared(recipe, mesh, stage, mean)
    update = make_update(recipe)

    def step(
        state: TrainState,
        noisy: Array,
        target: Array,
        learning_rate: Array,
        betas: Array | None = None,
        scales: Array | None = None,
    ) -> tuple[TrainState, StepMetrics]:
        with arithmetic(recipe.precision):
            loss, energies, grads, *losses = gradients(state.params, noisy, target, scales)
        kept, told = update(state, loss, grads, learning_rate, betas, scales)
        produced, wanted = energies
        energy = produced / jnp.maximum(wanted, jnp.finfo(wanted.dtype).tiny)
        told = {"loss": loss, "energy_ratio": energy, **told}
        return kept, {**told, "losses": losses[0]} if losses else told

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    known: Any = shapes  # shapes stand for the arrays here
    kind = recipe.optimizer_config
    moments = [known if group in moments_of(kind) else {} for group in ("exp_avg", "exp_avg_sq")]
    count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    whole = TrainState(known, AdamState(count, *moments))
    return make_sharded_step(step, whole, stage, mesh)


def make_update(recipe: Recipe) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """What turns gradients into an update: (state, loss, gradients, learning rate, betas, scales) -> (state, metrics).

    The gradients are those of the scaled loss, in the network's dtype; the rest is as in `make_step`.
    """
    # The margin beside the norm is 1e-6 with and without a loss scale.
    clip = clip_by_global_norm(recipe.max_norm)
    optimizer = make_optimizer(recipe.optimizer_config)

    def update(
        state: TrainState,
        loss: Array,
        grads: Params,
        learning_rate: Array,
        betas: Array | None = None,
        scales: Array | None = None,
    ) -> tuple[TrainState, StepMetrics]:
        # Gradients of a half-precision network are summed in its dtype and used in float32.
        grads = {name: g.astype(state.params[name].dtype) for name, g in grads.items()}
        norm = global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        if scales is None:
            clipped, _ = clip.update(grads, optax.EmptyState())
        else:
            clipped = _unscaled(grads, norm, scales[1], recipe.max_norm)
            norm = norm / scales[0]
        ahead = state.adam._replace(count=state.adam.count + recipe.head_start)
        updates, moments = optimizer.update(
            clipped, ahead, state.params, learning_rate=learning_rate, betas=betas
        )
        params: Any = optax.apply_updates(state.params, updates)
        moments = cast(AdamState, moments)._replace(count=state.adam.count + 1)
        made = TrainState(params, moments)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), made, state)
        return kept, {"grad_norm": norm, "finite": finite}

    return update


def shared(recipe: Recipe, mesh: Mesh, stage: int, mean: Mean | None = None) -> Callable[..., Any]:
    """What `_gradients` does, over several devices: (params, noisy, target, scales) -> the same, and their losses."""
    graph, shapes = abstract_denoiser(recipe.hidden)

    def on_one(params: Params, noisy: Array, target: Array, scales: Array | None) -> Any:
        loss, energies, grads = _gradients(recipe, graph, params, noisy, target, scales)
        return (loss, jnp.stack([loss, *energies])[None]), grads

    on_all = data_parallel(on_one, shapes, stage, mesh, mean)

    def gradients(params: Params, noisy: Array, target: Array, scales: Array | None = None) -> Any:
        (loss, parts), grads = on_all(params, noisy, target, whole=(scales,))
        return loss, (parts[:, 1].sum(), parts[:, 2].sum()), grads, parts[:, 0]

    return gradients


def micro_share(loss: Array, steps: int) -> Array:
    """What a micro batch's loss adds to that of an update, which is the mean over its `steps` passes."""
    return loss / steps if steps > 1 else loss


def _gradients(
    recipe: Recipe, graph: nnx.GraphDef, params: Params, noisy: Array, target: Array, scales: Array | None
) -> tuple[Array, tuple[Array, Array], Params]:
    """Loss, energies of output and target, and gradients of the (scaled) loss, over all micro batches."""
    if recipe.compute is not None:
        params = {name: leaf.astype(recipe.compute) for name, leaf in params.items()}
    factor = None if scales is None else scales[0]

    def scaled_loss(params: Params, noisy: Array, target: Array) -> tuple[Array, tuple[Array, Array]]:
        loss, output = loss_and_output(params, graph, noisy, target, recipe.checkpointed)
        # The engine divides first and then scales, and adds the gradients of the shares up.
        share = micro_share(loss, recipe.accumulation)
        return share if factor is None else share * factor, (loss, output)

    def one(noisy: Array, target: Array) -> tuple[Array, tuple[Array, Array], Params]:
        (_, (loss, output)), grads = jax.value_and_grad(scaled_loss, has_aux=True)(params, noisy, target)
        wanted = peak_normalize(target)
        return loss, (jnp.sum(output**2), jnp.sum(wanted**2)), grads

    if recipe.accumulation == 1:
        return one(noisy, target)

    def add(total: Params, part: tuple[Array, Array]) -> tuple[Params, tuple[Array, tuple[Array, Array]]]:
        loss, energies, grads = one(*part)
        return jax.tree.map(jnp.add, total, grads), (loss, energies)

    shape = (recipe.accumulation, -1, noisy.shape[-1])
    parts = noisy.reshape(shape), target.reshape(shape)
    total, (losses, energies) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    return losses.mean(), (energies[0].sum(), energies[1].sum()), total


def _unscaled(grads: Params, norm: Array, scale: Array, max_norm: float) -> Params:
    """Gradients divided by the loss scale and clipped, in one multiplication, as DeepSpeed's wrapper does."""
    divisor = scale
    if max_norm > 0:
        divisor = scale * jnp.maximum(1.0, (norm / scale + 1e-6) / max_norm)
    return jax.tree.map(lambda g: g * (1.0 / divisor), grads)


def make_eval(
    hidden: int, precision: Precision = "highest", compute: str | None = None
) -> Callable[[Params, Array, Array], tuple[Array, Array]]:
    """The compiled evaluation: (params, noisy, target) -> (loss, output); `compute` is the network's dtype."""
    graph, _ = abstract_denoiser(hidden)

    def evaluate(params: Params, noisy: Array, target: Array) -> tuple[Array, Array]:
        if compute is not None:
            params = {name: leaf.astype(compute) for name, leaf in params.items()}
        with arithmetic(precision):
            return loss_and_output(params, graph, noisy, target)

    return jax.jit(evaluate)
