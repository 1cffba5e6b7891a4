"""Training state and step of the denoiser in PyTorch; the twin of `jax_impl.train_step`.

What turns gradients into an update is either the DeepSpeed engine (`torch_impl.engine`) or, in float64 and in
tests, the plain optimizer below. The step is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from parivox.backend import Precision
from torch_impl.features import peak_normalize
from torch_impl.model.denoiser import Denoiser, denoiser_loss
from torch_impl.optim import AdamState, clip_by_global_norm, fused_adam, global_norm
from torch_impl.precision import arithmetic
from torch_impl.schedule import update_schedule
from torch_impl.weights import Params, abstract_denoiser

__all__ = ["TrainState", "loss_and_output", "make_eval", "make_step"]

StepMetrics = dict[str, Any]


@runtime_checkable
class TrainState(Protocol):
    """A module and what updates it: `PlainState` here, `DeepSpeedState` in `torch_impl.engine`."""

    @property
    def module(self) -> torch.nn.Module:
        """The model that is trained."""
        ...

    @property
    def adam(self) -> AdamState:
        """Updates made and moments."""
        ...

    def backward(self, loss: Tensor) -> dict[str, Tensor]:
        """Compute the gradients, by parameter name."""
        ...

    def update(self) -> float:
        """Clip, step the optimizer, then the schedule; returns the rate that was used."""
        ...

    def discard(self) -> float:
        """Drop the gradients; returns the rate that the update would have used."""
        ...


class PlainState:
    """The update in plain PyTorch, any float dtype."""

    def __init__(self, params: Params, adam: AdamState, hidden: int, config: Mapping[str, Any]):
        self.module = bind(hidden, params)
        self.adam = adam
        self._schedule = update_schedule(config)
        self._clip = clip_by_global_norm(config["gradient_clipping"])
        self._grads: dict[str, Tensor] = {}

    def backward(self, loss: Tensor) -> dict[str, Tensor]:
        """Compute the gradients, by parameter name."""
        named = dict(self.module.named_parameters())
        self._grads = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        return self._grads

    @torch.no_grad()
    def update(self) -> float:
        """Clip and step the optimizer; returns the rate that was used."""
        rate = self._schedule(self.adam.count)
        updates, self.adam = fused_adam().update(self._clip(self._grads), self.adam, rate)
        for name, parameter in self.module.named_parameters():
            parameter.add_(updates[name])
        self._grads = {}
        return float(rate)

    def discard(self) -> float:
        """Drop the gradients."""
        self._grads = {}
        return float(self._schedule(self.adam.count))


def bind(hidden: int, params: Params) -> Denoiser:
    """The module with these parameters, without a copy."""
    module, _ = abstract_denoiser(hidden)
    module.load_state_dict(params, assign=True)
    return module.requires_grad_(True)


def loss_and_output(
    module: torch.nn.Module, noisy: Float[Tensor, "b t"], target: Float[Tensor, "b t"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "b t"]]:
    """The training loss and the denoised batch."""
    output = module(noisy)
    return denoiser_loss(output, target), output


def make_step(
    precision: Precision = "highest", device: str = "cpu"
) -> Callable[[TrainState, Tensor, Tensor], tuple[TrainState, StepMetrics]]:
    """The step: (state, noisy, target) -> (state, metrics); the state is changed in place.

    When loss or gradient is not finite the state comes back unchanged and `finite` is False.
    """

    def step(state: TrainState, noisy: Tensor, target: Tensor) -> tuple[TrainState, StepMetrics]:
        with arithmetic(precision, device):
            loss, output = loss_and_output(state.module, noisy, target)
            grads = state.backward(loss)
        norm = global_norm(grads)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        rate = state.update() if finite else state.discard()
        wanted = peak_normalize(target)
        energy = output.detach().square().sum() / wanted.square().sum().clamp(
            min=torch.finfo(wanted.dtype).tiny
        )
        metrics = {"loss": loss.item(), "grad_norm": norm.item(), "energy_ratio": energy.item()}
        return state, {**metrics, "learning_rate": rate, "finite": finite}

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
