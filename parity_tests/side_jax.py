"""The JAX backend as the ladder sees it; the twin of `parity_tests.side_torch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_impl import features, optim, schedule, train_step, weights
from jax_impl.backend import JaxBackend
from jax_impl.precision import arithmetic
from parity_tests import deepspeed_oracle
from parity_tests.sides import AdamTrace, Pass, UpdatePlan
from parivox.backend import BackendName, Dtype, NamedArrays, Precision, moments_of
from parivox.deepspeed_config import TrainConfig
from parivox.features import StftSpec
from parivox.loss_scale import RunningScale


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
            arithmetic(self.precision),
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
            return np.asarray(jax.jit(lambda p, x: train_step.bind(graph, p)(x))(params, self._real(x)))

    def loss_and_grads(self, named: NamedArrays, hidden: int, x: np.ndarray, y: np.ndarray) -> Pass:
        graph, _ = weights.abstract_denoiser(hidden)

        def loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            return train_step.loss_and_output(params, graph, x, y)

        with self._scope():
            params = weights.from_arrays(named, hidden, jnp.dtype(self.dtype))
            program = jax.jit(jax.value_and_grad(loss, has_aux=True))
            (value, output), grads = program(params, self._real(x), self._real(y))
            return Pass(float(value), np.asarray(output), weights.to_arrays(grads))

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
        recipe = train_step.Recipe.of(0, config)
        scale = RunningScale(config.loss_scale, config.zero_stage)
        rate = schedule.update_schedule(config.deepspeed)

        @jax.jit
        def update(state: train_step.TrainState, grad: Any, rate: jax.Array, scales: Any) -> Any:
            factor = 1.0 if scales is None else scales[0]
            rounded = {name: (g * factor).astype(recipe.compute) for name, g in grad.items()}
            return train_step.make_update(recipe)(state, jnp.zeros(()), rounded, rate, None, scales)

        with self._scope():
            params = {name: self._real(array) for name, array in start.items()}
            moments = {kind: jax.tree.map(jnp.zeros_like, params) for kind in moments_of(config.optimizer)}
            adam = optim.AdamState(
                jnp.zeros((), jnp.int32), moments.get("exp_avg", {}), moments.get("exp_avg_sq", {})
            )
            state, found = train_step.TrainState(params, adam), []
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
