"""What each model minimises, in JAX; the twin of `torch_impl.objective`.

An objective is a pure function of (trained parameters, everything else by name, rows). The discriminator's
parameters stand beside the enhancer's, under names that begin with `discriminator.`: its losses see a sound that is
held fixed, the enhancer's see a discriminator that is, so that one gradient of the sum is the gradient of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.features import peak_normalize
from jax_impl.model.denoiser import Denoiser, denoiser_loss
from jax_impl.model.discriminator import discriminator_losses, generator_losses, mean_score
from jax_impl.model.enhancer import Enhancer, FlowDraws, stage1_losses, stage2_losses
from jax_impl.weights import (
    Params,
    abstract_denoiser,
    abstract_discriminator,
    abstract_enhancer,
    bind_discriminator,
    bind_enhancer,
)
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.stages import JUDGE
from parivox.weights_enhancer import STATISTICS, trained_names

__all__ = ["Objective", "Told", "bind", "loss_and_output", "objective_of"]

Rows = Mapping[str, Array]
Losses = dict[str, Array]


class Told(NamedTuple):
    """What a pass over some rows tells beside the sum that is minimised.

    Attributes:
        losses: of the model, by name; their sum is `StepResult.loss`.
        judge_losses: of its discriminator; empty without one.
        energies: of the sound that was made and of the one that was wanted.
        statistics: running means and variances after these rows, by public name.
        watched: other numbers by name.
    """

    losses: Losses
    judge_losses: Losses
    energies: tuple[Array, Array]
    statistics: Params
    watched: Losses


@runtime_checkable
class Objective(Protocol):
    """What `DenoiserObjective`, `Stage1Objective` and `Stage2Objective` provide.

    Attributes:
        inputs: names of the batch's arrays.
        shapes: what is trained, by public name.
        others: what else a state holds of the model: parameters that are not trained, and buffers.
    """

    inputs: tuple[str, ...]
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    others: Mapping[str, jax.ShapeDtypeStruct]

    def __call__(self, params: Params, others: Params, rows: Rows) -> tuple[Float[Array, ""], Told]:
        """The sum of all losses, the discriminator's too, and what makes it up."""
        ...

    def held_out(self, params: Params, others: Params, rows: Rows) -> tuple[Losses, Losses]:
        """Losses and sounds of held-out rows, as `parivox.backend.HeldOut` has them."""
        ...


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
    """The denoiser's loss and the denoised batch; `checkpointed` trades time for memory and changes no number."""
    module = bind(graph, params)
    module.net.checkpointed = checkpointed
    output = module(noisy)
    return denoiser_loss(output, target), output


def _sum(losses: Losses) -> Array:
    return jnp.sum(jnp.stack(list(losses.values())))


def _energies(made: Array, wanted: Array) -> tuple[Array, Array]:
    return jnp.sum(made**2), jnp.sum(peak_normalize(wanted) ** 2)


@dataclass
class DenoiserObjective:
    """The denoiser's L1."""

    hp: DenoiserHParams
    checkpointed: bool = False

    def __post_init__(self) -> None:
        """Look at the structure."""
        self.inputs: tuple[str, ...] = ("noisy", "target")
        self.graph, shapes = abstract_denoiser(self.hp.unet_hidden_dim)
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = shapes
        self.others: Mapping[str, jax.ShapeDtypeStruct] = {}

    def __call__(self, params: Params, others: Params, rows: Rows) -> tuple[Float[Array, ""], Told]:
        """See `Objective`."""
        loss, output = loss_and_output(params, self.graph, rows["noisy"], rows["target"], self.checkpointed)
        return loss, Told({"l1": loss}, {}, _energies(output, rows["target"]), {}, {})

    def held_out(self, params: Params, others: Params, rows: Rows) -> tuple[Losses, Losses]:
        """See `Objective`."""
        loss, output = loss_and_output(params, self.graph, rows["noisy"], rows["target"])
        return {"l1": loss}, {"denoised": output}


class _EnhancerObjective:
    """What both stages share: the enhancer's structure and its parts by name."""

    inputs: tuple[str, ...]

    def __init__(self, hp: EnhancerHParams):
        self.hp = hp
        self.graph, self._params, self._buffers = abstract_enhancer(hp)
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = {
            name: self._params[name] for name in trained_names(hp)
        }
        named = {**self._params, **self._buffers}
        self.others: Mapping[str, jax.ShapeDtypeStruct] = {
            name: leaf for name, leaf in named.items() if name not in self.shapes
        }

    def model(self, params: Params, others: Params) -> Enhancer:
        """The enhancer with these arrays."""
        named = {**others, **params}
        buffers = {name: named[name] for name in self._buffers}
        return bind_enhancer(self.graph, {name: named[name] for name in self._params}, buffers)


class Stage1Objective(_EnhancerObjective):
    """Auto-encoder and vocoder on clean speech, with the discriminator where it takes part."""

    inputs: tuple[str, ...] = ("target", "vocoder_noise")

    def __init__(self, hp: EnhancerHParams, judged: bool = False):
        """Look at the structure.

        Args:
            hp: hyperparameters, which give the sizes.
            judged: whether the discriminator takes part.
        """
        super().__init__(hp)
        self.judged = judged
        self._judge, shapes = abstract_discriminator(hp.stft_cfgs)
        if judged:
            judged_shapes = {JUDGE + name: leaf for name, leaf in shapes.items()}
            self.shapes: Mapping[str, jax.ShapeDtypeStruct] = {**self.shapes, **judged_shapes}

    def __call__(self, params: Params, others: Params, rows: Rows) -> tuple[Float[Array, ""], Told]:
        """See `Objective`."""
        target = rows["target"]
        made = stage1_losses(self.model(params, others), target, rows["vocoder_noise"], self.hp.stft_cfgs)
        latent_var = made.statistics["lcfm.ae.estimator.running_var_unsafe"]
        watched = {
            "latent_mean": made.statistics["lcfm.ae.estimator.running_mean_unsafe"],
            "latent_std": jnp.sqrt(latent_var),
        }
        losses, judge_losses = made.losses, {}
        if self.judged:
            own = {name.removeprefix(JUDGE): leaf for name, leaf in params.items() if name.startswith(JUDGE)}
            fixed = bind_discriminator(self._judge, jax.lax.stop_gradient(own))(made.sound)
            losses = losses | generator_losses(fixed)
            judge = bind_discriminator(self._judge, own)
            fake, real = judge(jax.lax.stop_gradient(made.sound)), judge(target)
            judge_losses = discriminator_losses(fake, real)
            watched |= {"score_fake": mean_score(fake), "score_real": mean_score(real)}
        told = Told(losses, judge_losses, _energies(made.sound, target), made.statistics, watched)
        return _sum({**losses, **judge_losses}), jax.lax.stop_gradient(told)

    def held_out(self, params: Params, others: Params, rows: Rows) -> tuple[Losses, Losses]:
        """See `Objective`; the discriminator takes no part, and the running means are those of training."""
        model = self.model(params, others)
        # What the pass would make of the running means is not kept, and not used either.
        made = stage1_losses(model, rows["target"], rows["vocoder_noise"], self.hp.stft_cfgs, update=False)
        return made.losses, {"reconstruction": made.sound}


class Stage2Objective(_EnhancerObjective):
    """The flow, and the denoiser beside it, on distorted speech."""

    inputs: tuple[str, ...] = ("noisy", "target", "distorted", "vocoder_noise", *FlowDraws._fields)

    def __call__(self, params: Params, others: Params, rows: Rows) -> tuple[Float[Array, ""], Told]:
        """See `Objective`."""
        losses, denoised = self._losses(self.model(params, others), rows)
        told = Told(losses, {}, _energies(denoised, rows["distorted"]), {}, {})
        return _sum(losses), jax.lax.stop_gradient(told)

    def held_out(self, params: Params, others: Params, rows: Rows) -> tuple[Losses, Losses]:
        """See `Objective`; the sample is drawn with the run's own solver, tau 0.5, and no denoiser."""
        model, hp = self.model(params, others), self.hp
        losses, denoised = self._losses(model, rows)
        noise = rows["vocoder_noise"]
        sample = model(
            rows["noisy"],
            rows["prior"],
            noise,
            jnp.full_like(rows["tau"], 0.5),
            method=hp.cfm_solver_method,
            nfe=hp.cfm_solver_nfe,
        )
        again = model.reconstruct(rows["target"], noise)
        return losses, {"denoised": denoised, "reconstruction": again, "sample": sample}

    def _losses(self, model: Enhancer, rows: Rows) -> tuple[Losses, Array]:
        draws = FlowDraws(*(rows[name] for name in FlowDraws._fields))
        return stage2_losses(model, rows["noisy"], rows["target"], rows["distorted"], draws)


def objective_of(hp: HParams, judged: bool = False, checkpointed: bool = False) -> Objective:
    """The objective of a run with these hyperparameters.

    Args:
        hp: hyperparameters; `parivox.stages.structure` of them is enough.
        judged: whether the discriminator takes part.
        checkpointed: whether the denoiser's blocks are computed again in the backward pass.
    """
    if isinstance(hp, DenoiserHParams):
        return DenoiserObjective(hp, checkpointed)
    enhancer: Any = hp
    stages: dict[str, Callable[[], Objective]] = {
        "ae": lambda: Stage1Objective(enhancer, judged),
        "cfm": lambda: Stage2Objective(enhancer),
    }
    return stages[enhancer.lcfm_training_mode]()


def statistics_of(others: Params) -> Params:
    """The running means and variances among named arrays."""
    return {name: others[name] for name in STATISTICS if name in others}
