"""The PyTorch backend as the ladder sees it; the twin of `parity_tests.side_jax`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity_tests.sides import AdamTrace, Judgement, Pass, UpdatePlan
from parivox.backend import BackendName, Dtype, NamedArrays, Precision
from parivox.features import StftSpec
from parivox.hparams import HParams
from torch_impl import features, objective, optim, schedule, weights
from torch_impl.backend import TorchBackend
from torch_impl.model import discriminator, mrstft
from torch_impl.precision import arithmetic


class TorchSide:
    """See `parity_tests.sides.Side`."""

    name: BackendName = "torch"

    def __init__(self, backend: TorchBackend, dtype: Dtype, precision: Precision):
        self.backend, self.dtype = backend, dtype
        self.precision: Precision = precision
        self._complex = {"float32": torch.complex64, "float64": torch.complex128}[dtype]

    def _scope(self):
        return arithmetic(self.precision, self.backend.device.type)

    def _real(self, x: np.ndarray) -> torch.Tensor:
        return torch.tensor(x, dtype=self.backend.dtype, device=self.backend.device)

    def _complex_tensor(self, z: np.ndarray) -> torch.Tensor:
        return torch.tensor(z, dtype=self._complex, device=self.backend.device)

    def stft(self, x: np.ndarray, spec: StftSpec) -> np.ndarray:
        with self._scope():
            return features.stft(self._real(x), spec).cpu().numpy()

    def istft(self, z: np.ndarray, spec: StftSpec) -> np.ndarray:
        with self._scope():
            return features.istft(self._complex_tensor(z), spec).cpu().numpy()

    def mel(self, x: np.ndarray) -> np.ndarray:
        with self._scope():
            return features.mel_spectrogram(self._real(x)).cpu().numpy()

    def magnitude_phase(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        magnitude, cos, sin = features.magnitude_phase(self._complex_tensor(z))
        return magnitude.cpu().numpy(), cos.cpu().numpy(), sin.cpu().numpy()

    def shapes(self, hidden: int) -> dict[str, tuple[int, ...]]:
        return weights.named_shapes(hidden)

    def _module(self, named: NamedArrays, hidden: int) -> torch.nn.Module:
        params = weights.from_arrays(named, hidden, self.backend.dtype, device=self.backend.device)
        return objective.bind(hidden, params)

    def denoise(self, named: NamedArrays, hidden: int, x: np.ndarray) -> np.ndarray:
        with self._scope(), torch.no_grad():
            return self._module(named, hidden)(self._real(x)).cpu().numpy()

    def loss_and_grads(self, named: NamedArrays, hidden: int, x: np.ndarray, y: np.ndarray) -> Pass:
        module = self._module(named, hidden)
        parameters = dict(module.named_parameters())
        with self._scope():
            value, output = objective.loss_and_output(module, self._real(x), self._real(y))
            grads = torch.autograd.grad(value, list(parameters.values()))
        named_grads = weights.to_arrays(dict(zip(parameters, grads, strict=True)))
        return Pass(value.item(), output.detach().cpu().numpy(), named_grads)

    def stft_losses(self, output: np.ndarray, target: np.ndarray) -> np.ndarray:
        with self._scope():
            losses = mrstft.mrstft_loss(self._real(output), self._real(target), HParams().stft_cfgs)
            return torch.stack(losses).cpu().numpy()

    def _discriminator(self, named: NamedArrays) -> discriminator.Discriminator:
        with torch.device("meta"):
            module = discriminator.Discriminator(HParams().stft_cfgs)
        state = {name: self._real(array) for name, array in named.items()}
        module.load_state_dict(state, assign=True)
        return module

    def judge(
        self, named: NamedArrays, fake: np.ndarray, real: np.ndarray, gradients: bool = True
    ) -> Judgement:
        module = self._discriminator(named)
        parameters = dict(module.named_parameters())
        rows, others = slice(len(fake)), slice(len(fake), None)
        with self._scope(), torch.set_grad_enabled(gradients):
            scores = module(self._real(np.concatenate([fake, real])))
            one, two = ({k: [p[part] for p in v] for k, v in scores.items()} for part in (rows, others))
            losses = discriminator.discriminator_losses(one, two)
            grads = {}
            if gradients:
                found = torch.autograd.grad(
                    torch.stack(list(losses.values())).sum(), list(parameters.values())
                )
                grads = weights.to_arrays(dict(zip(parameters, found, strict=True)))
            losses |= discriminator.generator_losses(one)
        return Judgement({name: loss.item() for name, loss in losses.items()}, grads)

    def sound_gradient(self, named: NamedArrays, fake: np.ndarray, target: np.ndarray) -> np.ndarray:
        module, sound = self._discriminator(named), self._real(fake).requires_grad_()
        with self._scope():
            terms = discriminator.generator_losses(module(sound)).values()
            stft = mrstft.mrstft_loss(sound, self._real(target), HParams().stft_cfgs)
            total = torch.stack([*terms, *stft]).sum()
            return torch.autograd.grad(total, sound)[0].cpu().numpy()

    def learning_rates(self, config: Mapping[str, Any], updates: np.ndarray) -> np.ndarray:
        return schedule.update_schedule(config)(updates).numpy()

    def adam(self, start: NamedArrays, grads: Sequence[NamedArrays], config: Mapping[str, Any]) -> AdamTrace:
        clip, adam = optim.clip_by_global_norm(config["gradient_clipping"]), optim.fused_adam()
        rate = schedule.update_schedule(config)
        params = {name: self._real(array) for name, array in start.items()}
        state = adam.init(params)
        for k, grad in enumerate(grads):
            clipped = clip({name: self._real(array) for name, array in grad.items()})
            updates, state = adam.update(clipped, state, rate(k))
            params = {name: p + updates[name] for name, p in params.items()}
        return AdamTrace(*map(weights.to_arrays, (params, state.exp_avg, state.exp_avg_sq)))

    def optimize(self, start: NamedArrays, grads: Sequence[NamedArrays], plan: UpdatePlan) -> AdamTrace:
        clip = optim.clip_by_global_norm(plan.gradient_clipping)
        optimizer = optim.make_grouped(plan.optimizers, plan.group_of)
        params = {name: self._real(array) for name, array in start.items()}
        state = optimizer.init(params)
        for k, grad in enumerate(grads):
            clipped = clip({name: self._real(array) for name, array in grad.items()})
            rates = {group: self._real(r[k]) for group, r in plan.rates.items()}
            betas = plan.betas and {group: self._real(b[k]) for group, b in plan.betas.items()}
            updates, state = optimizer.update(clipped, state, rates, params, betas)
            params = {name: p + updates[name] for name, p in params.items()}
        return AdamTrace(*map(weights.to_arrays, (params, state.exp_avg, state.exp_avg_sq)))


def open_side(backend: TorchBackend, dtype: Dtype, precision: Precision) -> TorchSide:
    """The PyTorch side of the ladder."""
    return TorchSide(backend, dtype, precision)
