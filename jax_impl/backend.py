"""The JAX side of `parivox.backend.Backend`; the twin of `torch_impl.backend`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_impl import sharding
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
    check_devices,
    check_moments,
    check_rows,
    is_suspect,
)
from parivox.caches import cache_folder
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.errors import BackendError
from parivox.hparams import DenoiserHParams
from parivox.loss_scale import RunningScale
from parivox.parallel import World

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
        mesh: Mesh | None = None,
    ):
        self.state, self.config = state, config
        self.schedule = update_schedule(config.deepspeed)
        self.betas = beta_schedule(config.deepspeed)
        recipe = Recipe.of(hp.unet_hidden_dim, config, precision)
        divided = () if mesh is None else (mesh, config.zero_stage, sharding.Mean.of(config))
        self.step = _step_program(recipe, *divided)
        self.eval = _eval_program(hp.unet_hidden_dim, precision, COMPUTE[config.precision])
        self.count = int(state.adam.count)
        self.scale = RunningScale(config.loss_scale, config.zero_stage, scaler)

    def scales(self) -> jax.Array | None:
        """The factor on the loss, and the one by which the gradients are then divided; None without."""
        factors = self.scale.factors()
        return None if factors is None else jnp.asarray(factors, jnp.float32)

    def made(self, finite: bool) -> tuple[bool, bool]:
        """Count an update and move the loss scale; returns whether all is well, and whether it was skipped."""
        self.count += finite
        return self.scale.made(finite)


class JaxBackend:
    """JAX on one device, or with a mesh on several, of this process or of many."""

    name = "jax"

    def __init__(
        self,
        device: Any,
        precision: Precision,
        dtype: Dtype,
        world: World | None = None,
        mesh: Mesh | None = None,
    ):
        self.device = device  # a jax.Device of this process, the first
        self.precision: Precision = precision
        self.dtype = jnp.dtype(dtype)
        self.world, self.mesh = world or World(), mesh
        self.data_parallel = 1 if mesh is None else mesh.size

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

        number = f"{self.data_parallel} x " if self.data_parallel > 1 else ""
        return {
            "backend": "jax",
            "device": f"{number}{self.device.platform}: {self.device.device_kind}",
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
        config = config or resolve(hp.deepspeed_config, world_size=self.data_parallel, hparams=hp)
        check_devices(config, self.data_parallel)
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
            if self.mesh is not None:
                shardings = sharding.state_shardings(state, config.zero_stage, self.mesh)
                state = sharding.place(state, shardings)
        return _Session(hp, config, state, self.precision, arrays.scaler, self.mesh)

    def step(self, state: _Session, batch: Batch) -> tuple[_Session, StepResult]:
        """One update."""
        check_rows(batch, state.config)
        with self._scope():
            rate = state.schedule(state.count)
            betas = state.betas and state.betas(state.count)
            scales = state.scales()
            state.state, metrics = state.step(
                state.state, *self._rows(batch), *self._same(rate, betas, scales)
            )
            host = jax.device_get(metrics)
        factor = state.scale.factor
        finite, skipped = state.made(bool(host["finite"]))
        return state, StepResult(
            loss=float(host["loss"]),
            grad_norm=float(host["grad_norm"]),
            learning_rate=float(rate),
            energy_ratio=float(host["energy_ratio"]),
            finite=finite,
            skipped=skipped,
            loss_scale=factor,
            suspect=is_suspect(self._own(host.get("losses")), float(host["loss"])),
        )

    def export_state(self, state: _Session) -> TrainArrays:
        """The whole state as named arrays on the host."""
        adam, whole = state.state.adam, to_arrays if self.mesh is None else sharding.full_arrays
        return TrainArrays(
            whole(state.state.params),
            whole(adam.exp_avg),
            whole(adam.exp_avg_sq),
            int(adam.count),
            state.scale.to_dict(),
        )

    def evaluate(self, state: _Session, batch: Batch) -> tuple[float, np.ndarray]:
        """Loss of a batch and the output, without an update."""
        with self._scope():
            params = state.state.params if self.mesh is None else sharding.one_device(state.state.params)
            loss, output = state.eval(params, self._put(batch["noisy"]), self._put(batch["target"]))
            return float(loss), np.asarray(output)

    def share(self, text: str) -> str:
        """The text of rank 0."""
        return sharding.share(text) if self.world.size > 1 else text

    def agree(self, flag: int) -> int:
        """The largest flag of all processes."""
        return sharding.agree(flag) if self.world.size > 1 else flag

    def gather(self, text: str) -> list[str]:
        """The texts of all processes."""
        return sharding.gather(text) if self.world.size > 1 else [text]

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

    def _rows(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        if self.mesh is None:
            return self._put(batch["noisy"]), self._put(batch["target"])
        rows = sharding.shard_batch({k: batch[k] for k in ("noisy", "target")}, self.mesh, self.dtype)
        return rows["noisy"], rows["target"]

    def _same(self, *values: jax.Array | None) -> tuple[Any, ...]:
        # Of a number that lies on one device JAX could not know that all processes have the same.
        return values if self.mesh is None else tuple(v if v is None else np.asarray(v) for v in values)

    def _own(self, losses: np.ndarray | None) -> float:
        """The mean loss of this process's devices."""
        if losses is None:
            return math.nan
        return float(np.split(losses, self.world.size)[self.world.rank].mean())


def create_backend(
    device: str = "auto",
    precision: Precision = "highest",
    dtype: Dtype = "float32",
    world: World | None = None,
) -> JaxBackend:
    """Set up a device, or all that there are. See `parivox.backend.get_backend`.

    Raises:
        BackendError: the device, precision or dtype is not available here, or the processes do not meet.
    """
    _use_compilation_cache()
    # First of all: where JAX is in use already, the processes cannot meet any more.
    met = None if world is None else sharding.initialize(world)
    platform = {"auto": None, "cuda": "gpu"}.get(device, device)
    try:
        chosen: Any = jax.local_devices(backend=platform)[0]
    except RuntimeError:
        have = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise BackendError(f"JAX sees no device '{device}'; it has: {have}. See: parivox doctor") from None
    if precision == "tf32" and chosen.platform == "cpu":
        raise BackendError("a CPU has no TF32 arithmetic; use --precision highest or bf16")
    if dtype == "float64" and chosen.platform != "cpu":
        raise BackendError("float64 runs on the CPU only; use --device cpu")
    mesh = None if met is None else sharding.make_mesh(jax.devices(chosen.platform))
    if mesh is None or met is None or mesh.size == 1:
        return JaxBackend(chosen, precision, dtype)
    if len(jax.local_devices(backend=chosen.platform)) * met.size != mesh.size:
        raise BackendError(
            f"{mesh.size} devices are spread unevenly over {met.size} processes; show each process as many, with"
            " CUDA_VISIBLE_DEVICES for instance"
        )
    return JaxBackend(chosen, precision, dtype, met, mesh)


def _use_compilation_cache() -> None:
    # Compiled programs outlive the process, so that a second run starts in a second or two.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not jax.config.values.get(
        "jax_compilation_cache_dir"
    ):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("jax")))
