"""The JAX side of `parivox.backend.Backend`; the twin of `torch_impl.backend`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_impl import sharding
from jax_impl.infer import DenoiserModel, EnhancerModel, load_denoiser, load_enhancer
from jax_impl.objective import objective_of
from jax_impl.optim import AdamState
from jax_impl.precision import platform
from jax_impl.schedule import beta_schedule, update_schedule
from jax_impl.train_step import COMPUTE, Drive, Recipe, TrainState, make_eval, make_step
from jax_impl.weights import (
    Params,
    discriminator_from_arrays,
    enhancer_from_arrays,
    from_arrays,
    to_arrays,
)
from parivox.backend import (
    Batch,
    Dtype,
    HeldOut,
    NamedArrays,
    Precision,
    Solver,
    StepResult,
    TrainArrays,
    check_devices,
    check_moments,
    check_rows,
    check_stage,
    is_suspect,
)
from parivox.caches import cache_folder
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.errors import BackendError
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.loss_scale import RunningScale
from parivox.parallel import World
from parivox.stages import JUDGE, has_judge, is_judged, structure
from parivox.weights import check_arrays
from parivox.weights_enhancer import buffer_names, trained_names

__all__ = ["JaxBackend", "create_backend"]


# Compiled programs outlive a state: a second one of the same kind compiles nothing.
_step_program = lru_cache(make_step)
_eval_program = lru_cache(make_eval)


class _Session:
    """A training state with the functions compiled for its hyperparameters and config."""

    def __init__(
        self,
        hp: HParams,
        config: TrainConfig,
        state: TrainState,
        precision: Precision,
        scaler: Mapping[str, float],
        mesh: Mesh | None = None,
    ):
        self.hp, self.state, self.config = hp, state, config
        self.schedule = update_schedule(config.deepspeed)
        self.betas = beta_schedule(config.deepspeed)
        device = platform(state.params)
        divided = () if mesh is None else (mesh, config.zero_stage, sharding.Mean.of(config))
        # Two programs where a discriminator comes in later; the second is compiled when it is needed.
        self._program = cache(
            lambda judged: _step_program(Recipe.of(hp, config, precision, judged, device), *divided)
        )
        self.eval = _eval_program(structure(hp), precision, COMPUTE[config.precision], device)
        self.count = int(state.adam.count)
        self.judge_count = None if state.judge is None else int(state.judge.count)
        self.scale = RunningScale(config.loss_scale, config.zero_stage, scaler)

    @property
    def judged(self) -> bool:
        """Whether the discriminator takes part in the next update."""
        return is_judged(self.hp, self.count)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the batch's arrays."""
        return objective_of(structure(self.hp)).inputs

    @property
    def step(self) -> Any:
        """The program of the next update."""
        return self._program(self.judged)

    def drives(self) -> tuple[Drive, Drive | None]:
        """What drives the next update, and the discriminator's where it takes part."""
        own = self._drive(self.count, self.scales())
        if not self.judged or self.judge_count is None:
            return own, None
        return own, self._drive(self.judge_count, None)

    def _drive(self, count: int, scales: jax.Array | None) -> Drive:
        return Drive(self.schedule(count), self.betas and self.betas(count), scales)

    def scales(self) -> jax.Array | None:
        """The factor on the loss, and the one by which the gradients are then divided; None without."""
        factors = self.scale.factors()
        return None if factors is None else jnp.asarray(factors, jnp.float32)

    def made(self, finite: bool) -> tuple[bool, bool]:
        """Count an update and move the loss scale; returns whether all is well, and whether it was skipped."""
        if self.judged and self.judge_count is not None:
            self.judge_count += finite
        self.count += finite
        return self.scale.made(finite)


class JaxBackend:
    """JAX on one device, or with a mesh on several, of this process or of many."""

    name = "jax"
    compiles = True

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

    def create_state(self, hp: HParams, arrays: TrainArrays, config: TrainConfig | None = None) -> _Session:
        """A training state on the device from named arrays."""
        config = config or resolve(hp.deepspeed_config, world_size=self.data_parallel, hparams=hp)
        check_devices(config, self.data_parallel)
        if config.precision != "fp32" and self.dtype == jnp.float64:
            raise BackendError(f"float64 does not go with {config.precision}; use float32, or an fp32 config")
        check_stage(hp, config, arrays)
        with self._scope():
            state = self._state(hp, arrays, config)
            if self.mesh is not None:
                shardings = sharding.state_shardings(state, config.zero_stage, self.mesh)
                state = sharding.place(state, shardings)
        return _Session(hp, config, state, self.precision, arrays.scaler, self.mesh)

    def _state(self, hp: HParams, arrays: TrainArrays, config: TrainConfig) -> TrainState:
        check_moments(arrays, config.optimizer)
        if not isinstance(hp, EnhancerHParams):
            hidden = hp.unet_hidden_dim if isinstance(hp, DenoiserHParams) else 0
            params = from_arrays(arrays.weights, hidden, self.dtype)
            return TrainState(params, self._adam(arrays, params, "the checkpoint"), None, {})
        params, buffers = enhancer_from_arrays(arrays.weights, hp, self.dtype)
        trained = {name: params.pop(name) for name in trained_names(hp)}
        adam, judge = self._adam(arrays, trained, "the checkpoint"), None
        rival = arrays.discriminator
        if has_judge(hp) and rival is not None:
            check_moments(rival, config.optimizer)
            theirs = discriminator_from_arrays(rival.weights, self.dtype)
            judge = self._adam(rival, theirs, "the checkpoint's discriminator", JUDGE)
            trained |= {JUDGE + name: leaf for name, leaf in theirs.items()}
        return TrainState(trained, adam, judge, {**params, **buffers})

    def _adam(self, arrays: TrainArrays, params: Params, what: str, prefix: str = "") -> AdamState:
        """The optimizer's memory of some parameters, named with a prefix."""
        moments = []
        for group in ("exp_avg", "exp_avg_sq"):
            named = getattr(arrays, group)
            if named:
                check_arrays({name: leaf.shape for name, leaf in params.items()}, named, f"{what}'s {group}")
            moments.append({prefix + k: jax.device_put(np.array(a, self.dtype)) for k, a in named.items()})
        return AdamState(jnp.asarray(arrays.step, jnp.int32), *moments)

    def step(self, state: _Session, batch: Batch) -> tuple[_Session, StepResult]:
        """One update."""
        check_rows(batch, state.config)
        with self._scope():
            rows = self._rows({name: batch[name] for name in state.inputs})
            drives = state.drives()
            state.state, metrics = state.step(state.state, rows, *self._same(drives))
            host = jax.device_get(metrics)
        factor, judge_rate = state.scale.factor, drives[1] and float(drives[1].rate)
        finite, skipped = state.made(bool(host["finite"]))
        watched = {name: float(value) for name, value in host["watched"].items()}
        return state, StepResult(
            loss=float(host["loss"]),
            grad_norm=float(host["grad_norm"]),
            learning_rate=float(drives[0].rate),
            energy_ratio=float(host["energy_ratio"]),
            finite=finite,
            skipped=skipped,
            loss_scale=factor,
            suspect=is_suspect(self._own(host.get("losses")), float(host["loss"])),
            losses={name: float(value) for name, value in host["named"].items()},
            watched=watched if judge_rate is None else {**watched, "d_lr": judge_rate},
        )

    def export_state(self, state: _Session) -> TrainArrays:
        """The whole state as named arrays on the host."""
        held, whole = state.state, to_arrays if self.mesh is None else sharding.full_arrays
        params, buffers = whole(held.params), buffer_names(state.hp)
        others = whole({name: leaf for name, leaf in held.others.items() if name not in buffers})
        own = {name: array for name, array in params.items() if not name.startswith(JUDGE)}
        rival = None
        if held.judge is not None:
            named, *moments = (
                {name.removeprefix(JUDGE): array for name, array in group.items()}
                for group in (
                    {name: array for name, array in params.items() if name not in own},
                    whole(held.judge.exp_avg),
                    whole(held.judge.exp_avg_sq),
                )
            )
            rival = TrainArrays(named, *moments, step=int(held.judge.count))
        adam = held.adam
        return TrainArrays(
            {**own, **others},
            whole(adam.exp_avg),
            whole(adam.exp_avg_sq),
            int(adam.count),
            state.scale.to_dict(),
            rival,
        )

    def evaluate(self, state: _Session, batch: Batch) -> HeldOut:
        """Losses and sound of a batch, without an update."""
        with self._scope():
            held, one = state.state, (lambda tree: tree) if self.mesh is None else sharding.one_device
            rows = {name: self._put(batch[name]) for name in state.inputs}
            own = {name: leaf for name, leaf in held.params.items() if not name.startswith(JUDGE)}
            losses, sounds = state.eval(one(own), one(held.others), rows)
            return HeldOut(
                {name: float(loss) for name, loss in losses.items()},
                {name: np.asarray(sound) for name, sound in sounds.items()},
            )

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

    def denoise(self, model: DenoiserModel, wav: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """Denoise (b, t) at 44,100 Hz."""
        with self._scope():
            return model(wav, lengths)

    def load_enhancer(self, hp: EnhancerHParams, weights: NamedArrays) -> EnhancerModel:
        """An enhancer for inference from named arrays."""
        with self._scope():
            return load_enhancer(weights, hp, self.dtype.name, self.precision)

    def enhance(
        self,
        model: EnhancerModel,
        wav: np.ndarray,
        prior: np.ndarray,
        noise: np.ndarray,
        tau: np.ndarray,
        blend: np.ndarray | None,
        method: Solver,
        nfe: int,
        lengths: np.ndarray | None = None,
    ) -> np.ndarray:
        """Enhance (b, t) at 44,100 Hz."""
        with self._scope():
            return model(wav, prior, noise, tau, blend, method, nfe, lengths)

    def _put(self, x: np.ndarray) -> jax.Array:
        return jnp.asarray(x, self.dtype)

    def _rows(self, batch: Batch) -> dict[str, jax.Array]:
        if self.mesh is None:
            return {name: self._put(array) for name, array in batch.items()}
        return sharding.shard_batch(batch, self.mesh, self.dtype)

    def _same(self, values: Any) -> Any:
        # Of a number that lies on one device JAX could not know that all processes have the same.
        return values if self.mesh is None else jax.tree.map(np.asarray, values)

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
