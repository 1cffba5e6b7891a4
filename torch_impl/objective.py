"""What each model minimises, in PyTorch; the twin of `jax_impl.objective`.

An objective is a module whose forward pass gives the losses of some rows, so that DeepSpeed's engine can wrap it: the
denoiser itself, or an enhancer that computes a stage's losses. The discriminator is a module of its own, with an
engine of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.weights_enhancer import STATISTICS, trained_names
from torch_impl.features import peak_normalize
from torch_impl.model.denoiser import Denoiser, denoiser_loss
from torch_impl.model.discriminator import discriminator_losses, generator_losses, mean_score
from torch_impl.model.enhancer import Enhancer, FlowDraws, stage1_losses, stage2_losses
from torch_impl.weights import Params, abstract_denoiser, abstract_enhancer, bind_enhancer

__all__ = ["Objective", "Told", "bind", "loss_and_output", "objective_of"]

Rows = Mapping[str, Tensor]
Losses = dict[str, Tensor]
Forward = Callable[..., Any]


class Told(NamedTuple):
    """What a pass over some rows tells.

    Attributes:
        losses: of the model, by name; their sum is minimised, and `StepResult.loss`.
        judge_losses: of its discriminator; empty without one.
        energies: of the sound that was made and of the one that was wanted.
        statistics: running means and variances after these rows, by public name.
        watched: other numbers by name.
    """

    losses: Losses
    judge_losses: Losses
    energies: tuple[Tensor, Tensor]
    statistics: Params
    watched: Losses


@runtime_checkable
class Objective(Protocol):
    """What `DenoiserObjective`, `Stage1Objective` and `Stage2Objective` provide.

    Attributes:
        inputs: names of the batch's arrays.
    """

    inputs: tuple[str, ...]

    def module(self, params: Params, others: Params) -> torch.nn.Module:
        """The model with these arrays; what is trained requires a gradient."""
        ...

    def __call__(self, forward: Forward, judge: Judge | None, rows: Rows) -> Told:
        """What a pass tells.

        Args:
            forward: the module's forward pass, or that of the engine around it.
            judge: the discriminator, where it takes part.
            rows: by name.
        """
        ...

    def held_out(self, module: Any, rows: Rows) -> tuple[Losses, Losses]:
        """Losses and sounds of held-out rows, as `parivox.backend.HeldOut` has them."""
        ...


class Judge:
    """A discriminator that can be asked with its weights held fixed."""

    def __init__(self, forward: Forward, module: torch.nn.Module):
        """Take the module, and its forward pass or that of the engine around it."""
        self.scores, self._module = forward, module

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Gradients go through it to the sound, and do not reach its weights."""
        self._module.requires_grad_(False)
        try:
            yield
        finally:
            self._module.requires_grad_(True)


def bind(hidden: int, params: Params, checkpointed: bool = False) -> Denoiser:
    """The denoiser with these parameters, without a copy; `checkpointed` trades time for memory."""
    module, _ = abstract_denoiser(hidden)
    module.load_state_dict(params, assign=True)
    module.net.checkpointed = checkpointed
    return module.requires_grad_(True)


def loss_and_output(
    module: Callable[[Tensor], Tensor], noisy: Float[Tensor, "b t"], target: Float[Tensor, "b t"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "b t"]]:
    """The denoiser's loss and the denoised batch."""
    output = module(noisy)
    return denoiser_loss(output, target), output


def _energies(made: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    return made.detach().square().sum(), peak_normalize(wanted).square().sum()


class DenoiserObjective:
    """The denoiser's L1."""

    def __init__(self, hp: DenoiserHParams, checkpointed: bool = False):
        """Take the hyperparameters, which give the width."""
        self.hp, self.checkpointed = hp, checkpointed
        self.inputs: tuple[str, ...] = ("noisy", "target")

    def module(self, params: Params, others: Params) -> Denoiser:
        """See `Objective`."""
        return bind(self.hp.unet_hidden_dim, params, self.checkpointed)

    def __call__(self, forward: Forward, judge: Judge | None, rows: Rows) -> Told:
        """See `Objective`."""
        loss, output = loss_and_output(forward, rows["noisy"], rows["target"])
        return Told({"l1": loss}, {}, _energies(output, rows["target"]), {}, {})

    def held_out(self, module: Any, rows: Rows) -> tuple[Losses, Losses]:
        """See `Objective`."""
        loss, output = loss_and_output(module, rows["noisy"], rows["target"])
        return {"l1": loss}, {"denoised": output}


class _Stage1(Enhancer):
    """An enhancer whose forward pass gives the first stage's losses, its sound and its statistics."""

    def __init__(self, hp: EnhancerHParams):
        super().__init__(hp)
        self.stft_cfgs = hp.stft_cfgs

    def forward(self, target: Tensor, noise: Tensor) -> tuple[Losses, Tensor, Params]:  # pyright: ignore[reportIncompatibleMethodOverride]
        made = stage1_losses(self, target, noise, self.stft_cfgs)
        return made.losses, made.sound, made.statistics


class _Stage2(Enhancer):
    """An enhancer whose forward pass gives the second stage's losses and the denoised mixture."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, noisy: Tensor, target: Tensor, distorted: Tensor, draws: FlowDraws
    ) -> tuple[Losses, Tensor]:
        return stage2_losses(self, noisy, target, distorted, draws)


class _EnhancerObjective:
    """What both stages share: the enhancer's structure and its parts by name."""

    inputs: tuple[str, ...]
    kind: type[Enhancer]

    def __init__(self, hp: EnhancerHParams):
        self.hp = hp

    def module(self, params: Params, others: Params) -> Enhancer:
        """See `Objective`."""
        model, names, buffers = abstract_enhancer(self.hp, kind=self.kind)
        named = {**others, **params}
        model = bind_enhancer(
            model, {name: named[name] for name in names}, {name: named[name] for name in buffers}
        )
        trained = set(trained_names(self.hp))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        return model


class Stage1Objective(_EnhancerObjective):
    """Auto-encoder and vocoder on clean speech, with the discriminator where it takes part."""

    inputs: tuple[str, ...] = ("target", "vocoder_noise")
    kind = _Stage1

    def __call__(self, forward: Forward, judge: Judge | None, rows: Rows) -> Told:
        """See `Objective`."""
        target = rows["target"]
        losses, sound, statistics = forward(target, rows["vocoder_noise"])
        watched = {
            "latent_mean": statistics["lcfm.ae.estimator.running_mean_unsafe"],
            "latent_std": statistics["lcfm.ae.estimator.running_var_unsafe"].sqrt(),
        }
        judge_losses: Losses = {}
        if judge is not None:
            with judge.fixed():
                losses = losses | generator_losses(judge.scores(sound))
            fake, real = judge.scores(sound.detach()), judge.scores(target)
            judge_losses = discriminator_losses(fake, real)
            watched |= {"score_fake": mean_score(fake).detach(), "score_real": mean_score(real).detach()}
        return Told(losses, judge_losses, _energies(sound, target), statistics, watched)

    def held_out(self, module: Any, rows: Rows) -> tuple[Losses, Losses]:
        """See `Objective`; the discriminator takes no part, and the running means are those of training."""
        # What the pass would make of the running means is not kept, and not used either.
        made = stage1_losses(module, rows["target"], rows["vocoder_noise"], self.hp.stft_cfgs, update=False)
        return made.losses, {"reconstruction": made.sound}


class Stage2Objective(_EnhancerObjective):
    """The flow, and the denoiser beside it, on distorted speech."""

    inputs: tuple[str, ...] = ("noisy", "target", "distorted", "vocoder_noise", *FlowDraws._fields)
    kind = _Stage2

    def __call__(self, forward: Forward, judge: Judge | None, rows: Rows) -> Told:
        """See `Objective`."""
        losses, denoised = self._losses(forward, rows)
        return Told(losses, {}, _energies(denoised, rows["distorted"]), {}, {})

    def held_out(self, module: Any, rows: Rows) -> tuple[Losses, Losses]:
        """See `Objective`; the sample is drawn with the run's own solver, tau 0.5, and no denoiser."""
        losses, denoised = self._losses(module, rows)
        hp, noise = self.hp, rows["vocoder_noise"]
        sample = Enhancer.forward(
            module,
            rows["noisy"],
            rows["prior"],
            noise,
            torch.full_like(rows["tau"], 0.5),
            method=hp.cfm_solver_method,
            nfe=hp.cfm_solver_nfe,
        )
        again = module.reconstruct(rows["target"], noise)
        return losses, {"denoised": denoised, "reconstruction": again, "sample": sample}

    def _losses(self, forward: Forward, rows: Rows) -> tuple[Losses, Tensor]:
        draws = FlowDraws(*(rows[name] for name in FlowDraws._fields))
        return forward(rows["noisy"], rows["target"], rows["distorted"], draws)


def objective_of(hp: HParams, checkpointed: bool = False) -> Objective:
    """The objective of a run with these hyperparameters.

    Args:
        hp: hyperparameters; `parivox.stages.structure` of them is enough.
        checkpointed: whether the denoiser's blocks are computed again in the backward pass.
    """
    if isinstance(hp, DenoiserHParams):
        return DenoiserObjective(hp, checkpointed)
    enhancer: Any = hp
    stages: dict[str, Callable[[], Objective]] = {
        "ae": lambda: Stage1Objective(enhancer),
        "cfm": lambda: Stage2Objective(enhancer),
    }
    return stages[enhancer.lcfm_training_mode]()


def statistics_of(others: Params) -> Params:
    """The running means and variances among named arrays."""
    return {name: others[name] for name in STATISTICS if name in others}
