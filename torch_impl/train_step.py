"""Training state and step of the denoiser in PyTorch; the twin of `jax_impl.train_step`.

What turns gradients into an update is either the DeepSpeed engine (`torch_impl.engine`) or, in float64 and in
tests, the plain optimizer below. The step is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from parivox.backend import Precision, TrainArrays, is_suspect
from parivox.deepspeed_config import TrainConfig
from torch_impl.features import peak_normalize
from torch_impl.model.denoiser import Denoiser, denoiser_loss
from torch_impl.optim import AdamState, clip_by_global_norm, global_norm, make_optimizer
from torch_impl.precision import arithmetic
from torch_impl.schedule import beta_schedule, update_schedule
from torch_impl.weights import Params, abstract_denoiser, to_arrays

__all__ = ["TrainState", "loss_and_output", "make_eval", "make_step"]

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
class TrainState(Protocol):
    """A module and what updates it: `PlainState` here, `DeepSpeedState` in `torch_impl.engine`."""

    config: TrainConfig

    @property
    def module(self) -> torch.nn.Module:
        """The model that is trained."""
        ...

    def forward(self, noisy: Tensor) -> Tensor:
        """The denoised batch."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro batch."""
        ...

    def update(self, loss: Tensor) -> Update:
        """Clip, step the optimizer, then the schedule, if the loss and all gradients are finite.

        Args:
            loss: mean over the micro batches.
        """
        ...

    def export(self) -> TrainArrays:
        """The state as named arrays on the host."""
        ...


class PlainState:
    """The update in plain PyTorch, any float dtype; its network computes in the dtype of its weights."""

    def __init__(self, params: Params, adam: AdamState, hidden: int, config: TrainConfig):
        self.module = bind(hidden, params, config.checkpoint_activations)
        self.adam, self.config = adam, config
        self._schedule, self._betas = update_schedule(config.deepspeed), beta_schedule(config.deepspeed)
        self._clip = clip_by_global_norm(config.gradient_clipping)
        self._optimizer = make_optimizer(config.optimizer)
        self._grads: dict[str, Tensor] = {}

    def forward(self, noisy: Tensor) -> Tensor:
        """The denoised batch."""
        return self.module(noisy)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro batch."""
        named = dict(self.module.named_parameters())
        share = micro_share(loss, self.config.accumulation_steps)
        found = dict(zip(named, torch.autograd.grad(share, list(named.values())), strict=True))
        self._grads = {k: self._grads[k] + g for k, g in found.items()} if self._grads else found

    @torch.no_grad()
    def update(self, loss: Tensor) -> Update:
        """Clip and step the optimizer."""
        grads, self._grads = self._grads, {}
        norm, count = global_norm(grads), self.adam.count
        rate = self._schedule(count)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            named = dict(self.module.named_parameters())
            betas = self._betas and self._betas(count)
            updates, self.adam = self._optimizer.update(self._clip(grads), self.adam, rate, named, betas)
            for name, parameter in named.items():
                parameter.add_(updates[name])
        return Update(norm.item(), float(rate), finite)

    def export(self) -> TrainArrays:
        """The state as named arrays on the host."""
        weights = to_arrays(dict(self.module.named_parameters()))
        return TrainArrays(
            weights, to_arrays(self.adam.exp_avg), to_arrays(self.adam.exp_avg_sq), self.adam.count
        )


def bind(hidden: int, params: Params, checkpointed: bool = False) -> Denoiser:
    """The module with these parameters, without a copy; `checkpointed` trades time for memory."""
    module, _ = abstract_denoiser(hidden)
    module.load_state_dict(params, assign=True)
    module.net.checkpointed = checkpointed
    return module.requires_grad_(True)


def micro_share(loss: Tensor, steps: int) -> Tensor:
    """What a micro batch's loss adds to that of an update, which is the mean over its `steps` passes."""
    return loss / steps if steps > 1 else loss


def loss_and_output(
    module: Callable[[Tensor], Tensor], noisy: Float[Tensor, "b t"], target: Float[Tensor, "b t"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "b t"]]:
    """The training loss and the denoised batch."""
    output = module(noisy)
    return denoiser_loss(output, target), output


def make_step(
    precision: Precision = "highest", device: str = "cpu", ranks: int = 1
) -> Callable[[TrainState, Tensor, Tensor], tuple[TrainState, StepMetrics]]:
    """The step: (state, noisy, target) -> (state, metrics); the state is changed in place.

    The rows are those of all micro batches of this rank; loss and energy are of all of them together, on all ranks.
    When loss or gradient is not finite the state comes back unchanged and `finite` is False.
    """

    def step(state: TrainState, noisy: Tensor, target: Tensor) -> tuple[TrainState, StepMetrics]:
        losses, produced, desired = [], [], []
        rows = len(noisy) // state.config.accumulation_steps
        for part, aim in zip(noisy.split(rows), target.split(rows), strict=True):
            with arithmetic(precision, device):
                loss, output = loss_and_output(state.forward, part, aim)
                state.backward(loss)
            losses.append(loss.detach())
            produced.append(output.detach().square().sum())
            desired.append(peak_normalize(aim).square().sum())
        own = torch.stack(losses).mean()
        loss, output_energy, wanted = own, torch.stack(produced).sum(), torch.stack(desired).sum()
        if ranks > 1:
            totals = torch.stack([own, output_energy, wanted])
            dist.all_reduce(totals)
            loss, output_energy, wanted = totals[0] / ranks, totals[1], totals[2]
        made = state.update(loss)
        energy = output_energy / wanted.clamp(min=torch.finfo(wanted.dtype).tiny)
        told = {"loss": loss.item(), "energy_ratio": energy.item(), **vars(made)}
        return state, {**told, "suspect": is_suspect(own.item(), told["loss"])}

    return step


def make_eval(
    precision: Precision = "highest", device: str = "cpu"
) -> Callable[[torch.nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The evaluation: (module, noisy, target) -> (loss, output)."""

    @torch.no_grad()
    def evaluate(module: torch.nn.Module, noisy: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with arithmetic(precision, device):
            return loss_and_output(module, noisy, target)

    return evaluate
