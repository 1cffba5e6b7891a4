"""Training state and step in PyTorch; the twin of `jax_impl.train_step`.

What turns gradients into an update is either the DeepSpeed engine (`torch_impl.engine`) or, in float64 and in
tests, the plain optimizer below. The step is the same for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch import distributed as dist

from parivox.backend import NamedArrays, Precision, TrainArrays, is_suspect
from parivox.deepspeed_config import TrainConfig
from parivox.hparams import EnhancerHParams, HParams
from parivox.stages import is_judged
from parivox.weights_enhancer import buffer_names
from torch_impl.objective import Judge, Objective, Told, statistics_of
from torch_impl.optim import AdamState, clip_by_global_norm, global_norm, make_optimizer
from torch_impl.precision import arithmetic
from torch_impl.schedule import beta_schedule, update_schedule
from torch_impl.weights import Params, to_arrays

__all__ = ["Player", "TrainState", "make_step", "make_eval"]

StepMetrics = dict[str, Any]


@dataclass(frozen=True)
class Update:
    """What became of the gradients of an update.

    Attributes:
        grad_norm: L2 norm of all gradients, before clipping.
        learning_rate: the rate that was used, or would have been.
        finite: False where loss or norm is not, and no loss scale can mend it.
        skipped: whether float16 overflowed and the update was left out.
        loss_scale: factor on the loss.
    """

    grad_norm: float
    learning_rate: float
    finite: bool
    skipped: bool = False
    loss_scale: float = 1.0


@runtime_checkable
class Player(Protocol):
    """A module and what updates it: `PlainPlayer` here, `DeepSpeedPlayer` in `torch_impl.engine`."""

    config: TrainConfig

    @property
    def module(self) -> torch.nn.Module:
        """The model that is trained."""
        ...

    @property
    def count(self) -> int:
        """Updates made so far."""
        ...

    def forward(self, *inputs: Any) -> Any:
        """The module's forward pass."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro batch."""
        ...

    def is_finite(self, loss: Tensor) -> bool:
        """Whether loss and gradients are finite, as far as can be known before the update."""
        ...

    def update(self, loss: Tensor, wanted: bool = True) -> Update:
        """Clip, step the optimizer, then the schedule, if the loss and all gradients are finite.

        Args:
            loss: mean over the micro batches.
            wanted: False leaves the update out as if something were not finite.
        """
        ...

    def export(self) -> TrainArrays:
        """The trained parameters and their moments as named arrays on the host."""
        ...


class PlainPlayer:
    """The update in plain PyTorch, any float dtype; its network computes in the dtype of its weights."""

    def __init__(self, module: torch.nn.Module, adam: AdamState, config: TrainConfig):
        self.module = module
        self.adam, self.config = adam, config
        self._schedule, self._betas = update_schedule(config.deepspeed), beta_schedule(config.deepspeed)
        self._clip = clip_by_global_norm(config.gradient_clipping)
        self._optimizer = make_optimizer(config.optimizer)
        self._grads: dict[str, Tensor] = {}

    @property
    def count(self) -> int:
        """Updates made so far."""
        return self.adam.count

    def forward(self, *inputs: Any) -> Any:
        """The module's forward pass."""
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro batch."""
        named = trained(self.module)
        share = micro_share(loss, self.config.accumulation_steps)
        found = dict(zip(named, torch.autograd.grad(share, list(named.values())), strict=True))
        self._grads = {k: self._grads[k] + g for k, g in found.items()} if self._grads else found

    def is_finite(self, loss: Tensor) -> bool:
        """Whether loss and gradients are finite."""
        return bool(torch.isfinite(loss) & torch.isfinite(global_norm(self._grads)))

    @torch.no_grad()
    def update(self, loss: Tensor, wanted: bool = True) -> Update:
        """Clip and step the optimizer."""
        grads, self._grads = self._grads, {}
        norm, count = global_norm(grads), self.adam.count
        rate = self._schedule(count)
        finite = wanted and bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            named = trained(self.module)
            betas = self._betas and self._betas(count)
            updates, self.adam = self._optimizer.update(self._clip(grads), self.adam, rate, named, betas)
            for name, parameter in named.items():
                parameter.add_(updates[name])
        return Update(norm.item(), float(rate), finite)

    def export(self) -> TrainArrays:
        """The trained parameters and their moments as named arrays on the host."""
        weights = to_arrays(trained(self.module))
        return TrainArrays(
            weights, to_arrays(self.adam.exp_avg), to_arrays(self.adam.exp_avg_sq), self.adam.count
        )


def trained(module: torch.nn.Module) -> Params:
    """The parameters of a module that are trained, by public name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@dataclass
class TrainState:
    """Everything a step changes, in place.

    Attributes:
        hp: hyperparameters of the run.
        objective: what is minimised.
        model: the model and what updates it.
        judge: its discriminator; None without one.
        untrained: parameters that are not trained, by public name.
    """

    hp: HParams
    objective: Objective
    model: Player
    judge: Player | None = None
    untrained: NamedArrays = field(default_factory=dict)

    @property
    def config(self) -> TrainConfig:
        """How it is trained."""
        return self.model.config

    @property
    def module(self) -> torch.nn.Module:
        """The model that is trained."""
        return self.model.module

    def export(self) -> TrainArrays:
        """The state as named arrays on the host."""
        found = self.model.export()
        if not isinstance(self.hp, EnhancerHParams):
            return found
        buffers = buffer_names(self.hp)
        others = {n: b for n, b in self.module.named_buffers() if n not in buffers}
        weights = {**found.weights, **self.untrained, **to_arrays(others)}
        rival = None if self.judge is None else self.judge.export()
        return dataclasses.replace(found, weights=weights, discriminator=rival)


def micro_share(loss: Tensor, steps: int) -> Tensor:
    """What a micro batch's loss adds to that of an update, which is the mean over its `steps` passes."""
    return loss / steps if steps > 1 else loss


def make_step(
    precision: Precision = "highest", device: str = "cpu", ranks: int = 1
) -> Callable[[TrainState, Mapping[str, Tensor]], tuple[TrainState, StepMetrics]]:
    """The step: (state, rows) -> (state, metrics); the state is changed in place.

    The rows are those of all micro batches of this rank; losses and energy are of all of them together, on all
    ranks. When a loss or gradient is not finite the state comes back unchanged and `finite` is False. With a
    discriminator, model and discriminator are updated from gradients of the same moment.
    """

    def step(state: TrainState, rows: Mapping[str, Tensor]) -> tuple[TrainState, StepMetrics]:
        buffers = statistics_of(dict(state.module.named_buffers()))
        found, before = [], {name: buffer.clone() for name, buffer in buffers.items()}
        judge = state.judge if is_judged(state.hp, state.model.count) else None
        asked = None if judge is None else Judge(judge.forward, judge.module)
        count = len(rows["target"]) // state.config.accumulation_steps
        parts = {name: array.split(count) for name, array in rows.items()}
        for k in range(state.config.accumulation_steps):
            with arithmetic(precision, device):
                told = state.objective(
                    state.model.forward, asked, {name: part[k] for name, part in parts.items()}
                )
                state.model.backward(_total(told.losses))
                if judge is not None:
                    judge.backward(_total(told.judge_losses))
            _put_statistics(state.module, told.statistics)
            found.append(_detached(told))
        told = _mean_of(found)
        own = _total(told.losses).item()
        told = _over_ranks(told, ranks)
        metrics = _update(state, judge, told)
        _put_statistics(state.module, told.statistics if metrics["finite"] else before)
        produced, wanted = told.energies
        energy = produced / wanted.clamp(min=torch.finfo(wanted.dtype).tiny)
        losses = {name: loss.item() for name, loss in {**told.losses, **told.judge_losses}.items()}
        watched = {name: value.item() for name, value in told.watched.items()} | metrics.pop("watched")
        metrics |= {"energy_ratio": energy.item(), "losses": losses, "watched": watched}
        return state, {**metrics, "suspect": is_suspect(own, metrics["loss"])}

    return step


def _update(state: TrainState, judge: Player | None, told: Told) -> StepMetrics:
    """Update the model, and its discriminator where that takes part: both or none."""
    loss = _total(told.losses)
    if judge is None:
        return {"loss": loss.item(), **vars(state.model.update(loss)), "watched": {}}
    judge_loss = _total(told.judge_losses)
    wanted = state.model.is_finite(loss) and judge.is_finite(judge_loss)
    made, theirs = state.model.update(loss, wanted), judge.update(judge_loss, wanted)
    watched = {"d_loss": judge_loss.item(), "d_grad_norm": theirs.grad_norm, "d_lr": theirs.learning_rate}
    return {
        "loss": loss.item(),
        **vars(made),
        "finite": made.finite and theirs.finite,
        "watched": watched,
    }


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@torch.no_grad()
def _put_statistics(module: torch.nn.Module, statistics: Mapping[str, Tensor]) -> None:
    buffers = dict(module.named_buffers())
    for name, value in statistics.items():
        buffers[name].copy_(value)


def _detached(told: Told) -> Told:
    parts = [{name: leaf.detach().clone() for name, leaf in part.items()} for part in (told[0], told[1])]
    statistics, watched = (
        {name: leaf.detach().clone() for name, leaf in part.items()}
        for part in (told.statistics, told.watched)
    )
    return Told(parts[0], parts[1], told.energies, statistics, watched)


def _mean_of(found: Sequence[Told]) -> Told:
    """Means of losses and watched numbers over the micro batches, sums of energies, the last statistics."""
    means = [
        {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        for parts in (
            [told.losses for told in found],
            [told.judge_losses for told in found],
            [told.watched for told in found],
        )
    ]
    made, wanted = (torch.stack([told.energies[k] for told in found]).sum() for k in (0, 1))
    return Told(means[0], means[1], (made, wanted), found[-1].statistics, means[2])


def _over_ranks(told: Told, ranks: int) -> Told:
    """Means over the ranks, sums of energies."""
    if ranks == 1:
        return told
    groups = [told.losses, told.judge_losses, told.statistics, told.watched]
    flat = torch.stack([*told.energies, *(leaf for group in groups for leaf in group.values())])
    dist.all_reduce(flat)
    means = iter((flat[2:] / ranks).unbind())
    losses, judge_losses, statistics, watched = ({name: next(means) for name in group} for group in groups)
    return Told(losses, judge_losses, (flat[0], flat[1]), statistics, watched)


def make_eval(
    precision: Precision = "highest", device: str = "cpu"
) -> Callable[[TrainState, Mapping[str, Tensor]], tuple[Params, Params]]:
    """The evaluation: (state, rows) -> (losses, sounds)."""

    @torch.no_grad()
    def evaluate(state: TrainState, rows: Mapping[str, Tensor]) -> tuple[Params, Params]:
        with arithmetic(precision, device):
            return state.objective.held_out(state.module, rows)

    return evaluate
