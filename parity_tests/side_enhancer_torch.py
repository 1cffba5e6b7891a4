"""The enhancer of the PyTorch backend as the ladder sees it; the twin of `parity_tests.side_enhancer_jax`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity_tests.side_torch import TorchSide
from parity_tests.sides_enhancer import Part, Step
from parivox.backend import NamedArrays
from parivox.hparams import EnhancerHParams
from parivox.weights_enhancer import trained_names
from torch_impl import weights as torch_weights
from torch_impl.model import cfm, discriminator, enhancer, normalizer, weight_norm

Arrays = dict[str, torch.Tensor]


def _irmae(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    ae = model.lcfm.ae
    latent = ae.encode(inputs["mel"])
    decoded = ae.decode(latent)
    return {"latent": latent, "decoded": decoded, "head": ae.reconstruct(decoded)}


def _time_map(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    return {"time_map": cfm.time_map(inputs["t"], model.lcfm.cfm.divisor)}


def _velocity(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    return {"velocity": model.lcfm.cfm.velocity(inputs["psi"], inputs["mel"], inputs["t"])}


def _flow(model: enhancer.Enhancer, inputs: Arrays, method: cfm.Method, nfe: int) -> Arrays:
    return {f"{method}_{nfe}": model.lcfm.cfm.sample(inputs["psi"], inputs["mel"], method, nfe)}


def _vocoder(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    return {"output": model.vocoder(inputs["condition"], inputs["noise"])}


def _enhance(model: enhancer.Enhancer, inputs: Arrays, method: cfm.Method, nfe: int) -> Arrays:
    return {"output": model(**inputs, method=method, nfe=nfe)}


def _snake(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    blocks: Any = model.vocoder.blocks
    activation = blocks[0].amp_block[0][1].act
    return {"output": activation(inputs["x"])}


PARTS: dict[Part, Callable[..., Arrays]] = {
    "irmae": _irmae,
    "time map": _time_map,
    "velocity": _velocity,
    "flow": _flow,
    "snake": _snake,
    "vocoder": _vocoder,
    "enhance": _enhance,
}


class TorchEnhancer:
    """See `parity_tests.sides_enhancer.EnhancerSide`."""

    def __init__(self, side: TorchSide):
        self.side = side

    def _put(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        return {name: self.side._real(array) for name, array in arrays.items()}

    def _model(self, named: NamedArrays, hp: EnhancerHParams, folded: bool = False) -> enhancer.Enhancer:
        backend = self.side.backend
        params, buffers = torch_weights.enhancer_from_arrays(named, hp, backend.dtype, device=backend.device)
        params = weight_norm.fold(params) if folded else params
        return torch_weights.bind_enhancer(torch_weights.abstract_enhancer(hp, folded)[0], params, buffers)

    def tensors(self, hp: EnhancerHParams, folded: bool = False) -> dict[str, tuple[int, ...]]:
        _, params, buffers = torch_weights.abstract_enhancer(hp, folded)
        return {name: tuple(leaf.shape) for name, leaf in {**params, **buffers}.items()}

    def run(
        self,
        weights: NamedArrays,
        hp: EnhancerHParams,
        part: Part,
        inputs: Mapping[str, np.ndarray],
        folded: bool = False,
        tile: int | None = None,
        **static: Any,
    ) -> dict[str, np.ndarray]:
        with self.side._scope(), torch.no_grad():
            model = self._model(weights, hp, folded)
            model.vocoder.tile = tile
            found = PARTS[part](model, self._put(inputs), **static)
            return {name: array.cpu().numpy() for name, array in found.items()}

    def normalize(self, batches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        with self.side._scope():
            nan = self.side._real(np.array(np.nan))
            statistics, x, found = (nan, nan), nan, []
            for batch in batches:
                x = self.side._real(batch)
                statistics = normalizer.update_statistics(statistics, x)
                found.append(torch.stack(statistics).cpu().numpy())
            return np.stack(found), normalizer.Normalizer()(x, statistics).cpu().numpy()

    def stage1(
        self,
        weights: NamedArrays,
        judge: NamedArrays,
        hp: EnhancerHParams,
        x: np.ndarray,
        noise: np.ndarray,
        gradients: bool = True,
    ) -> Step:
        def losses(model: enhancer.Enhancer, inputs: Arrays) -> tuple[Arrays, Arrays]:
            made = enhancer.stage1_losses(model, inputs["x"], inputs["noise"], hp.stft_cfgs)
            scores = judging(made.sound)
            return made.losses | discriminator.generator_losses(scores), {
                "fake": made.sound,
                **made.statistics,
            }

        with self.side._scope():
            judging = self.side._discriminator(judge)
            return self._step(weights, hp, losses, {"x": x, "noise": noise}, gradients)

    def stage2(
        self,
        weights: NamedArrays,
        hp: EnhancerHParams,
        signals: Sequence[np.ndarray],
        draws: Mapping[str, np.ndarray],
        gradients: bool = True,
    ) -> Step:
        def losses(model: enhancer.Enhancer, inputs: Arrays) -> tuple[Arrays, Arrays]:
            mixture, clean, distorted = (inputs.pop(name) for name in names)
            return enhancer.stage2_losses(model, mixture, clean, distorted, enhancer.FlowDraws(**inputs))[
                0
            ], {}

        names = ("mixture", "clean", "distorted")
        with self.side._scope():
            given = {**dict(zip(names, signals, strict=True)), **draws}
            return self._step(weights, hp, losses, given, gradients)

    def _step(
        self,
        weights: NamedArrays,
        hp: EnhancerHParams,
        losses: Callable[[enhancer.Enhancer, Arrays], tuple[Arrays, Arrays]],
        inputs: Mapping[str, np.ndarray],
        gradients: bool = True,
    ) -> Step:
        model = self._model(weights, hp)
        params = dict(model.named_parameters())
        trained = {name: params[name] for name in trained_names(hp)}
        with torch.set_grad_enabled(gradients):
            found, results = losses(model, self._put(inputs))
            grads = {}
            if gradients:
                gradient = torch.autograd.grad(
                    torch.stack(list(found.values())).sum(), list(trained.values())
                )
                grads = torch_weights.to_arrays(dict(zip(trained, gradient, strict=True)))
        numbers = {name: value.item() for name, value in found.items()}
        return Step(numbers, torch_weights.to_arrays(results), grads)


def open_enhancer(side: TorchSide) -> TorchEnhancer:
    """The enhancer of the PyTorch side."""
    return TorchEnhancer(side)
