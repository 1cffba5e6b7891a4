"""The enhancer of the JAX backend as the ladder sees it; the twin of `parity_tests.side_enhancer_torch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl import weights as jax_weights
from jax_impl.model import cfm, discriminator, enhancer, normalizer, weight_norm
from parity_tests.side_jax import JaxSide, module_of
from parity_tests.sides_enhancer import Part, Step
from parivox.backend import NamedArrays
from parivox.hparams import EnhancerHParams
from parivox.weights_enhancer import trained_names

Arrays = dict[str, jax.Array]


def _turn(x: jax.Array) -> jax.Array:
    return x.swapaxes(1, 2)


def _irmae(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    ae = model.lcfm.ae
    latent = ae.encode(_turn(inputs["mel"]))
    decoded = ae.decode(latent)
    return {"latent": _turn(latent), "decoded": _turn(decoded), "head": _turn(ae.reconstruct(decoded))}


def _time_map(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    return {"time_map": cfm.time_map(inputs["t"], model.lcfm.cfm.divisor)}


def _velocity(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    psi, mel = _turn(inputs["psi"]), _turn(inputs["mel"])
    return {"velocity": _turn(model.lcfm.cfm.velocity(psi, mel, inputs["t"]))}


def _flow(model: enhancer.Enhancer, inputs: Arrays, method: cfm.Method, nfe: int) -> Arrays:
    psi, mel = _turn(inputs["psi"]), _turn(inputs["mel"])
    return {f"{method}_{nfe}": _turn(model.lcfm.cfm.sample(psi, mel, method, nfe))}


def _vocoder(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    return {"output": model.vocoder(_turn(inputs["condition"]), _turn(inputs["noise"]))}


def _enhance(model: enhancer.Enhancer, inputs: Arrays, method: cfm.Method, nfe: int) -> Arrays:
    return {"output": model(**inputs, method=method, nfe=nfe)}


def _snake(model: enhancer.Enhancer, inputs: Arrays) -> Arrays:
    activation = model.vocoder.blocks[0].amp_block[0][1].act
    return {"output": _turn(activation(_turn(inputs["x"])))}


PARTS: dict[Part, Callable[..., Arrays]] = {
    "irmae": _irmae,
    "time map": _time_map,
    "velocity": _velocity,
    "flow": _flow,
    "snake": _snake,
    "vocoder": _vocoder,
    "enhance": _enhance,
}


class JaxEnhancer:
    """See `parity_tests.sides_enhancer.EnhancerSide`."""

    def __init__(self, side: JaxSide):
        self.side = side

    def _put(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        return {name: self.side._real(array) for name, array in arrays.items()}

    def _arrays(self, named: NamedArrays, hp: EnhancerHParams) -> tuple[Arrays, Arrays]:
        return jax_weights.enhancer_from_arrays(named, hp, jnp.dtype(self.side.dtype))

    def tensors(self, hp: EnhancerHParams, folded: bool = False) -> dict[str, tuple[int, ...]]:
        _, params, buffers = jax_weights.abstract_enhancer(hp, folded)
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
        def program(params: Arrays, buffers: Arrays, inputs: Arrays) -> Arrays:
            model = jax_weights.bind_enhancer(graph, params, buffers)
            model.vocoder.tile = tile
            return PARTS[part](model, inputs, **static)

        with self.side._scope():
            graph, _, _ = jax_weights.abstract_enhancer(hp, folded)
            params, buffers = self._arrays(weights, hp)
            params = weight_norm.fold(params) if folded else params
            found = jax.jit(program)(params, buffers, self._put(inputs))
            return {name: np.asarray(array) for name, array in found.items()}

    def normalize(self, batches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        with self.side._scope():
            nan = self.side._real(np.array(np.nan))
            statistics, x, found = (nan, nan), nan, []
            for batch in batches:
                x = self.side._real(batch)
                statistics = jax.jit(normalizer.update_statistics)(statistics, x)
                found.append(np.array(statistics))
            return np.stack(found), np.asarray(normalizer.Normalizer()(x, statistics))

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
            scores = module_of(judging, judge_params)(made.sound)
            return made.losses | discriminator.generator_losses(scores), {
                "fake": made.sound,
                **made.statistics,
            }

        with self.side._scope():
            judging, judge_params = self.side._discriminator(judge)
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
        graph, _, _ = jax_weights.abstract_enhancer(hp)
        params, buffers = self._arrays(weights, hp)
        trained = {name: params.pop(name) for name in trained_names(hp)}

        def total(trained: Arrays, frozen: Arrays, inputs: Arrays) -> tuple[jax.Array, tuple[Arrays, Arrays]]:
            model = jax_weights.bind_enhancer(graph, {**trained, **frozen}, buffers)
            found, results = losses(model, dict(inputs))
            return jnp.sum(jnp.stack(list(found.values()))), (found, results)

        program = jax.value_and_grad(total, has_aux=True) if gradients else total
        told, grads = jax.jit(program)(trained, params, self._put(inputs))
        (found, results), grads = (told[1], grads) if gradients else (grads, {})
        numbers = {name: float(value) for name, value in found.items()}
        return Step(numbers, {k: np.asarray(v) for k, v in results.items()}, jax_weights.to_arrays(grads))


def open_enhancer(side: JaxSide) -> JaxEnhancer:
    """The enhancer of the JAX side."""
    return JaxEnhancer(side)
