"""The JAX side of `parivox.backend.Backend`; the twin of `torch_impl.backend`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl.infer import DenoiserModel, load_denoiser
from jax_impl.optim import AdamState
from jax_impl.schedule import beta_schedule, update_schedule
from jax_impl.train_step import COMPUTE, Recipe, TrainState, make_eval, make_step
from jax_impl.weights import from_arrays, to_arrays
from parivox.backend import (
    Batch,
    Dtype,
    NamedArrays,
    Precision,
    StepResult,
    TrainArrays,
    check_moments,
    check_rows,
)
from parivox.caches import cache_folder
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.errors import BackendError
from parivox.hparams import DenoiserHParams
from parivox.loss_scale import after_overflow, after_update, restored_scale

__all__ = ["JaxBackend", "create_backend"]


# Compiled programs outlive a state: a second one of the same kind compiles nothing.
_step_program = lru_cache(make_step)
_eval_program = lru_cache(make_eval)


class _Session:
    """A training state with the functions compiled for its hyperparameters and config."""

    def __init__(
        self,
        hp: DenoiserHParams,
        config: TrainConfig,
        state: TrainState,
        precision: Precision,
        scaler: Mapping[str, float],
    ):
        self.state, self.config = state, config
        self.schedule = update_schedule(config.deepspeed)
        self.betas = beta_schedule(config.deepspeed)
        self.step = _step_program(Recipe.of(hp.unet_hidden_dim, config, precision))
        self.eval = _eval_program(hp.unet_hidden_dim, precision, COMPUTE[config.precision])
        self.count = int(state.adam.count)
        self.scale = config.loss_scale and restored_scale(config.loss_scale, scaler)

    def scales(self) -> jax.Array | None:
        """The factor on the loss, and the one by which the gradients are then divided; None without."""
        if self.scale is None or self.config.loss_scale is None:
            return None
        after = after_update(self.scale, self.config.loss_scale)
        return jnp.asarray([self.scale.scale, after.scale], jnp.float32)

    def made(self, finite: bool) -> tuple[bool, bool]:
        """Count an update and move the loss scale; returns whether all is well, and whether it was skipped."""
        self.count += finite
        if self.scale is None or self.config.loss_scale is None:
            return finite, False
        if finite:
            self.scale = after_update(self.scale, self.config.loss_scale)
            return True, False
        lower = after_overflow(self.scale, self.config.loss_scale, self.config.zero_stage)
        self.scale = lower or self.scale
        return lower is not None, lower is not None


class JaxBackend:
    """JAX on one device."""

    name = "jax"

    def __init__(self, device: Any, precision: Precision, dtype: Dtype):
        self.device = device  # a jax.Device
        self.precision: Precision = precision
        self.dtype = jnp.dtype(dtype)

    @contextmanager
    def _scope(self) -> Iterator[None]:
        # JAX cuts float64 down to float32 unless told; told for these calls alone, so that both can be used
        # side by side in one process.
        with jax.default_device(self.device), jax.enable_x64(self.dtype == jnp.float64):
            yield

    def describe(self) -> dict[str, str]:
        """Device, precision and library versions."""
        import flax
        import optax

        return {
            "backend": "jax",
            "device": f"{self.device.platform}: {self.device.device_kind}",
            "precision": self.precision,
            "dtype": self.dtype.name,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
        }

    def create_state(
        self, hp: DenoiserHParams, arrays: TrainArrays, config: TrainConfig | None = None
    ) -> _Session:
        """A training state on the device from named arrays."""
        config = config or resolve(hp.deepspeed_config, hparams=hp)
        if config.precision != "fp32" and self.dtype == jnp.float64:
            raise BackendError(f"float64 does not go with {config.precision}; use float32, or an fp32 config")
        check_moments(arrays, config.optimizer)
        hidden = hp.unet_hidden_dim
        with self._scope():
            params, exp_avg, exp_avg_sq = (
                from_arrays(tree, hidden, self.dtype, what) if tree else {}
                for tree, what in (
                    (arrays.weights, "the checkpoint"),
                    (arrays.exp_avg, "the checkpoint's exp_avg"),
                    (arrays.exp_avg_sq, "the checkpoint's exp_avg_sq"),
                )
            )
            state = TrainState(params, AdamState(jnp.asarray(arrays.step, jnp.int32), exp_avg, exp_avg_sq))
        return _Session(hp, config, state, self.precision, arrays.scaler)

    def step(self, state: _Session, batch: Batch) -> tuple[_Session, StepResult]:
        """One update."""
        check_rows(batch, state.config)
        with self._scope():
            rate = state.schedule(state.count)
            betas = state.betas and state.betas(state.count)
            scales = state.scales()
            noisy, target = self._put(batch["noisy"]), self._put(batch["target"])
            state.state, metrics = state.step(state.state, noisy, target, rate, betas, scales)
            host = jax.device_get(metrics)
        factor = state.scale.scale if state.scale else 1.0
        finite, skipped = state.made(bool(host["finite"]))
        return state, StepResult(
            loss=float(host["loss"]),
            grad_norm=float(host["grad_norm"]),
            learning_rate=float(rate),
            energy_ratio=float(host["energy_ratio"]),
            finite=finite,
            skipped=skipped,
            loss_scale=factor,
        )

    def export_state(self, state: _Session) -> TrainArrays:
        """The state as named arrays on the host."""
        adam = state.state.adam
        return TrainArrays(
            to_arrays(state.state.params),
            to_arrays(adam.exp_avg),
            to_arrays(adam.exp_avg_sq),
            int(adam.count),
            state.scale.to_dict() if state.scale else {},
        )

    def evaluate(self, state: _Session, batch: Batch) -> tuple[float, np.ndarray]:
        """Loss of a batch and the output, without an update."""
        with self._scope():
            loss, output = state.eval(
                state.state.params, self._put(batch["noisy"]), self._put(batch["target"])
            )
            return float(loss), np.asarray(output)

    def load_denoiser(self, hp: DenoiserHParams, weights: NamedArrays) -> DenoiserModel:
        """A denoiser for inference from named arrays."""
        with self._scope():
            return load_denoiser(weights, hp.unet_hidden_dim, self.dtype.name, self.precision)

    def denoise(self, model: DenoiserModel, wav: np.ndarray) -> np.ndarray:
        """Denoise (b, t) at 44,100 Hz."""
        with self._scope():
            return model(wav)

    def _put(self, x: np.ndarray) -> jax.Array:
        return jnp.asarray(x, self.dtype)


def create_backend(
    device: str = "auto", precision: Precision = "highest", dtype: Dtype = "float32"
) -> JaxBackend:
    """Set up a device. See `parivox.backend.get_backend`.

    Raises:
        BackendError: the device, precision or dtype is not available here.
    """
    _use_compilation_cache()
    platform = {"auto": None, "cuda": "gpu"}.get(device, device)
    try:
        chosen: Any = jax.devices(platform)[0]
    except RuntimeError:
        have = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise BackendError(f"JAX sees no device '{device}'; it has: {have}. See: parivox doctor") from None
    if precision == "tf32" and chosen.platform == "cpu":
        raise BackendError("a CPU has no TF32 arithmetic; use --precision highest or bf16")
    if dtype == "float64" and chosen.platform != "cpu":
        raise BackendError("float64 runs on the CPU only; use --device cpu")
    return JaxBackend(chosen, precision, dtype)


def _use_compilation_cache() -> None:
    # Compiled programs outlive the process, so that a second run starts in a second or two.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not jax.config.values.get(
        "jax_compilation_cache_dir"
    ):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("jax")))
