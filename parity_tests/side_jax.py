"""The JAX backend as the ladder sees it; the twin of `parity_tests.side_torch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jax_impl import features, objective, optim, schedule, train_step, weights
from jax_impl.backend import JaxBackend
from jax_impl.model import discriminator, mrstft
from jax_impl.precision import arithmetic
from parity_tests import deepspeed_oracle
from parity_tests.sides import AdamTrace, Judgement, Pass, UpdatePlan
from parivox.backend import BackendName, Dtype, NamedArrays, Precision, moments_of
from parivox.deepspeed_config import TrainConfig
from parivox.features import StftSpec
from parivox.hparams import DenoiserHParams, HParams
from parivox.loss_scale import RunningScale


def module_of(graph: nnx.GraphDef, params: Mapping[str, jax.Array]) -> Any:
    """The module of a structure with parameters by public name."""
    paths = {name: tuple(int(p) if p.isdigit() else p for p in name.split(".")) for name in params}
    return nnx.merge(graph, nnx.from_flat_state([(paths[name], nnx.Param(params[name])) for name in params]))


class JaxSide:
    """See `parity_tests.sides.Side`."""

    name: BackendName = "jax"

    def __init__(self, backend: JaxBackend, dtype: Dtype, precision: Precision):
        self.backend, self.dtype = backend, dtype
        self.precision: Precision = precision
        self._complex = {"float32": np.complex64, "float64": np.complex128}[dtype]

    @contextmanager
    def _scope(self) -> Iterator[None]:
        with (
            jax.default_device(self.backend.device),
            jax.enable_x64(self.dtype == "float64"),
            arithmetic(self.precision, self.backend.device.platform),
        ):
            yield

    def _real(self, x: np.ndarray) -> jax.Array:
        return jnp.asarray(x, self.dtype)

    def stft(self, x: np.ndarray, spec: StftSpec) -> np.ndarray:
        with self._scope():
            return np.asarray(jax.jit(features.stft, static_argnums=1)(self._real(x), spec))

    def istft(self, z: np.ndarray, spec: StftSpec) -> np.ndarray:
        with self._scope():
            return np.asarray(jax.jit(features.istft, static_argnums=1)(jnp.asarray(z, self._complex), spec))

    def mel(self, x: np.ndarray) -> np.ndarray:
        with self._scope():
            return np.asarray(jax.jit(features.mel_spectrogram)(self._real(x)))

    def magnitude_phase(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with self._scope():
            magnitude, cos, sin = features.magnitude_phase(jnp.asarray(z, self._complex))
            return np.asarray(magnitude), np.asarray(cos), np.asarray(sin)

    def shapes(self, hidden: int) -> dict[str, tuple[int, ...]]:
        return weights.named_shapes(hidden)

    def denoise(self, named: NamedArrays, hidden: int, x: np.ndarray) -> np.ndarray:
        graph, _ = weights.abstract_denoiser(hidden)
        with self._scope():
            params = weights.from_arrays(named, hidden, jnp.dtype(self.dtype))
            return np.asarray(jax.jit(lambda p, x: objective.bind(graph, p)(x))(params, self._real(x)))

    def loss_and_grads(self, named: NamedArrays, hidden: int, x: np.ndarray, y: np.ndarray) -> Pass:
        graph, _ = weights.abstract_denoiser(hidden)

        def loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            return objective.loss_and_output(params, graph, x, y)

        with self._scope():
            params = weights.from_arrays(named, hidden, jnp.dtype(self.dtype))
            program = jax.jit(jax.value_and_grad(loss, has_aux=True))
            (value, output), grads = program(params, self._real(x), self._real(y))
            return Pass(float(value), np.asarray(output), weights.to_arrays(grads))

    def stft_losses(self, output: np.ndarray, target: np.ndarray) -> np.ndarray:
        with self._scope():
            program = jax.jit(lambda x, y: jnp.stack(mrstft.mrstft_loss(x, y, HParams().stft_cfgs)))
            return np.asarray(program(self._real(output), self._real(target)))

    def _discriminator(self, named: NamedArrays) -> tuple[nnx.GraphDef, dict[str, jax.Array]]:
        module = nnx.eval_shape(lambda: discriminator.Discriminator(HParams().stft_cfgs))
        return nnx.split(module, nnx.Param)[0], {name: self._real(array) for name, array in named.items()}

    def judge(
        self, named: NamedArrays, fake: np.ndarray, real: np.ndarray, gradients: bool = True
    ) -> Judgement:
        def loss(params: dict[str, jax.Array], both: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            # One pass for both, which halves the time of compiling.
            scores = module_of(graph, params)(both)
            one, two = ({k: [p[part] for p in v] for k, v in scores.items()} for part in (rows, others))
            losses = discriminator.discriminator_losses(one, two)
            return jnp.sum(jnp.stack(list(losses.values()))), losses | discriminator.generator_losses(one)

        rows, others = slice(len(fake)), slice(len(fake), None)
        with self._scope():
            graph, params = self._discriminator(named)
            program = jax.value_and_grad(loss, has_aux=True) if gradients else loss
            told, grads = jax.jit(program)(params, self._real(np.concatenate([fake, real])))
            losses, grads = (told[1], grads) if gradients else (grads, {})
            return Judgement({k: float(v) for k, v in losses.items()}, weights.to_arrays(grads))

    def sound_gradient(self, named: NamedArrays, fake: np.ndarray, target: np.ndarray) -> np.ndarray:
        def loss(fake: jax.Array, target: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
            scores = module_of(graph, params)(fake)
            terms = discriminator.generator_losses(scores).values()
            return jnp.sum(jnp.stack([*terms, *mrstft.mrstft_loss(fake, target, HParams().stft_cfgs)]))

        with self._scope():
            graph, params = self._discriminator(named)
            return np.asarray(jax.jit(jax.grad(loss))(self._real(fake), self._real(target), params))

    def learning_rates(self, config: Mapping[str, Any], updates: np.ndarray) -> np.ndarray:
        return np.asarray(schedule.update_schedule(config)(updates))

    def adam(self, start: NamedArrays, grads: Sequence[NamedArrays], config: Mapping[str, Any]) -> AdamTrace:
        clip, adam = optim.clip_by_global_norm(config["gradient_clipping"]), optim.fused_adam()
        rate = schedule.update_schedule(config)

        @jax.jit
        def update(params: Any, state: Any, grad: Any, learning_rate: jax.Array) -> tuple[Any, Any]:
            clipped, _ = clip.update(grad, optax.EmptyState())
            updates, state = adam.update(clipped, state, learning_rate=learning_rate)
            return optax.apply_updates(params, updates), state

        with self._scope():
            params = {name: self._real(array) for name, array in start.items()}
            state: Any = adam.init(params)
            for k, grad in enumerate(grads):
                grad = {name: self._real(array) for name, array in grad.items()}
                params, state = update(params, state, grad, rate(k))
            return AdamTrace(*map(weights.to_arrays, (params, state.exp_avg, state.exp_avg_sq)))

    def optimize(self, start: NamedArrays, grads: Sequence[NamedArrays], plan: UpdatePlan) -> AdamTrace:
        clip = optim.clip_by_global_norm(plan.gradient_clipping)
        optimizer = optim.make_grouped(plan.optimizers, plan.group_of)

        @jax.jit
        def update(params: Any, state: Any, grad: Any, rates: Any, betas: Any) -> tuple[Any, Any]:
            clipped, _ = clip.update(grad, optax.EmptyState())
            updates, state = optimizer.update(clipped, state, params, learning_rate=rates, betas=betas)
            return optax.apply_updates(params, updates), state

        with self._scope():
            params = {name: self._real(array) for name, array in start.items()}
            state: Any = optimizer.init(params)
            for k, grad in enumerate(grads):
                grad = {name: self._real(array) for name, array in grad.items()}
                rates = {group: self._real(r[k]) for group, r in plan.rates.items()}
                betas = plan.betas and {group: self._real(b[k]) for group, b in plan.betas.items()}
                params, state = update(params, state, grad, rates, betas)
            return AdamTrace(*map(weights.to_arrays, (params, state.exp_avg, state.exp_avg_sq)))

    def train_half(
        self, start: NamedArrays, grads: Sequence[NamedArrays], config: TrainConfig
    ) -> deepspeed_oracle.HalfTrace:
        """Updates of a config in float16 or bfloat16, one for each gradient of a loss that is linear in the weights.

        Gradients are scaled in float32 and rounded to the dtype, where they may overflow.
        """
        recipe = train_step.Recipe.of(DenoiserHParams(), config)
        scale = RunningScale(config.loss_scale, config.zero_stage)
        rate = schedule.update_schedule(config.deepspeed)

        @jax.jit
        def update(state: train_step.Player, grad: Any, rate: jax.Array, scales: Any) -> Any:
            factor = 1.0 if scales is None else scales[0]
            rounded = {name: (g * factor).astype(recipe.compute) for name, g in grad.items()}
            drive = train_step.Drive(rate, None, scales)
            made, told = train_step.make_update(recipe)(state, jnp.zeros(()), rounded, drive)
            return jax.tree.map(lambda new, old: jnp.where(told["finite"], new, old), made, state), told

        with self._scope():
            params = {name: self._real(array) for name, array in start.items()}
            moments = {kind: jax.tree.map(jnp.zeros_like, params) for kind in moments_of(config.optimizer)}
            adam = optim.AdamState(
                jnp.zeros((), jnp.int32), moments.get("exp_avg", {}), moments.get("exp_avg_sq", {})
            )
            state, found = train_step.Player(params, adam), []
            for grad in grads:
                grad = {name: self._real(array) for name, array in grad.items()}
                factors = scale.factors()
                scales = None if factors is None else self._real(np.array(factors))
                factor, count = scale.factor, int(state.adam.count)
                state, told = update(state, grad, rate(count), scales)
                _, skipped = scale.made(bool(told["finite"]))
                found.append((factor, skipped))
            kept = map(weights.to_arrays, (state.params, state.adam.exp_avg, state.adam.exp_avg_sq))
            return deepspeed_oracle.HalfTrace(found, AdamTrace(*kept))


def open_side(backend: JaxBackend, dtype: Dtype, precision: Precision) -> JaxSide:
    """The JAX side of the ladder."""
    return JaxSide(backend, dtype, precision)
