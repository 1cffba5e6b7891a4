"""The PyTorch side of `parivox.backend.Backend`; the twin of `jax_impl.backend`."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import torch

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
)
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.errors import BackendError
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.parallel import World
from parivox.stages import has_judge, structure
from parivox.weights import check_arrays
from parivox.weights_enhancer import trained_names
from torch_impl import sharding
from torch_impl.infer import DenoiserModel, EnhancerModel, load_denoiser, load_enhancer
from torch_impl.objective import objective_of
from torch_impl.optim import AdamState
from torch_impl.train_step import PlainPlayer, Player, TrainState, make_eval, make_step, trained
from torch_impl.weights import (
    abstract_discriminator,
    bind_discriminator,
    discriminator_from_arrays,
    enhancer_from_arrays,
    from_arrays,
)

__all__ = ["TorchBackend", "create_backend"]


class TorchBackend:
    """PyTorch on one device of each process; trains through DeepSpeed in float32, plainly in float64."""

    name = "torch"
    compiles = False

    def __init__(self, device: torch.device, precision: Precision, dtype: Dtype, world: World | None = None):
        self.device = device
        self.precision: Precision = precision
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.world = world or World()
        self.data_parallel = self.world.size
        self._step = make_step(precision, device.type, self.data_parallel)
        self._eval = make_eval(precision, device.type)

    def describe(self) -> dict[str, str]:
        """Device, precision and library versions."""
        cuda = self.device.type == "cuda"
        number = f"{self.data_parallel} x " if self.data_parallel > 1 else ""
        text = {
            "backend": "torch",
            "device": number + (f"cuda: {torch.cuda.get_device_name(self.device)}" if cuda else "cpu"),
            "precision": self.precision,
            "dtype": str(self.dtype).removeprefix("torch."),
            "torch": torch.__version__,
        }
        if importlib.util.find_spec("deepspeed"):
            from importlib.metadata import version

            text["deepspeed"] = version("deepspeed")
        return text

    def create_state(self, hp: HParams, arrays: TrainArrays, config: TrainConfig | None = None) -> TrainState:
        """A training state on the device from named arrays.

        Raises:
            BackendError: float32 training needs DeepSpeed and it is not installed, or DeepSpeed cannot do on this
                device what the config asks for.
        """
        config = config or resolve(hp.deepspeed_config, world_size=self.data_parallel, hparams=hp)
        check_devices(config, self.data_parallel)
        check_stage(hp, config, arrays)
        check_moments(arrays, config.optimizer)
        if self.dtype == torch.float64:
            if self.world.size > 1:
                raise BackendError(
                    "float64 on PyTorch trains in one process; use --backend jax for several devices"
                )
            if config.precision != "fp32":
                raise BackendError(
                    f"float64 does not go with {config.precision}; use float32, or an fp32 config"
                )
        elif not importlib.util.find_spec("deepspeed"):
            raise BackendError("training on torch needs DeepSpeed; run: pip install 'parivox[deepspeed]'")
        return self._state(hp, arrays, config)

    def _state(self, hp: HParams, arrays: TrainArrays, config: TrainConfig) -> TrainState:
        objective = objective_of(structure(hp), config.checkpoint_activations)
        if not isinstance(hp, EnhancerHParams):
            hidden = hp.unet_hidden_dim if isinstance(hp, DenoiserHParams) else 0
            params = from_arrays(arrays.weights, hidden, self.dtype, device=self.device)
            module = objective.module(params, {})
            return TrainState(hp, objective, self._player(module, arrays, config, "the checkpoint"))
        params, buffers = enhancer_from_arrays(arrays.weights, hp, self.dtype, device=self.device)
        names, rival = set(trained_names(hp)), arrays.discriminator
        untrained = {name: np.array(arrays.weights[name]) for name in params if name not in names}
        mine = dataclasses.replace(arrays, weights={name: arrays.weights[name] for name in names})
        judged = has_judge(hp) and rival is not None
        model = self._player(
            objective.module(params, buffers), mine, config, "the checkpoint", alone=not judged
        )
        judge = None
        if judged and rival is not None:
            check_moments(rival, config.optimizer)
            theirs = discriminator_from_arrays(rival.weights, self.dtype, device=self.device)
            module = bind_discriminator(abstract_discriminator(hp.stft_cfgs)[0], theirs)
            what = "the checkpoint's discriminator"
            judge = self._player(module, rival, config, what, alone=False)
        return TrainState(hp, objective, model, judge, untrained)

    def _player(
        self,
        module: torch.nn.Module,
        arrays: TrainArrays,
        config: TrainConfig,
        what: str,
        alone: bool = True,
    ) -> Player:
        """A module with what updates it."""
        shapes = {name: tuple(p.shape) for name, p in trained(module).items()}
        for group in ("exp_avg", "exp_avg_sq"):
            if getattr(arrays, group):
                check_arrays(shapes, getattr(arrays, group), f"{what}'s {group}")
        if self.dtype == torch.float64:
            moments = [
                {name: torch.tensor(array, dtype=self.dtype) for name, array in group.items()}
                for group in (arrays.exp_avg, arrays.exp_avg_sq)
            ]
            return PlainPlayer(module, AdamState(arrays.step, *moments), config)
        from torch_impl.engine import DeepSpeedPlayer

        return DeepSpeedPlayer(module, arrays, config, self.device.type, alone)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepResult]:
        """One update."""
        check_rows(batch, state.config)
        state, metrics = self._step(state, self._rows(state, batch))
        return state, StepResult(**metrics)

    def export_state(self, state: TrainState) -> TrainArrays:
        """The state as named arrays on the host."""
        return state.export()

    def evaluate(self, state: TrainState, batch: Batch) -> HeldOut:
        """Losses and sound of a batch, without an update."""
        losses, sounds = self._eval(state, self._rows(state, batch))
        return HeldOut(
            {name: loss.item() for name, loss in losses.items()},
            {name: sound.cpu().numpy() for name, sound in sounds.items()},
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
        dtype = str(self.dtype).removeprefix("torch.")
        return load_denoiser(weights, hp.unet_hidden_dim, dtype, self.precision, self.device)

    def denoise(self, model: DenoiserModel, wav: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """Denoise (b, t) at 44,100 Hz."""
        return model(wav, lengths)

    def load_enhancer(self, hp: EnhancerHParams, weights: NamedArrays) -> EnhancerModel:
        """An enhancer for inference from named arrays."""
        dtype = str(self.dtype).removeprefix("torch.")
        return load_enhancer(weights, hp, dtype, self.precision, self.device)

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
        return model(wav, prior, noise, tau, blend, method, nfe, lengths)

    def _rows(self, state: TrainState, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: self._put(batch[name]) for name in state.objective.inputs}

    def _put(self, x: np.ndarray) -> torch.Tensor:
        return torch.tensor(x, dtype=self.dtype, device=self.device)


def create_backend(
    device: str = "auto",
    precision: Precision = "highest",
    dtype: Dtype = "float32",
    world: World | None = None,
) -> TorchBackend:
    """Set up a device. See `parivox.backend.get_backend`.

    Raises:
        BackendError: the device, precision or dtype is not available here, or the processes do not meet.
    """
    if device == "tpu":
        raise BackendError("the torch backend does not run on TPUs; use --backend jax")
    gpu = torch.cuda.is_available()
    if device in ("gpu", "cuda") and not gpu:
        raise BackendError(f"PyTorch sees no device '{device}'; it has: cpu. See: parivox doctor")
    chosen = torch.device("cuda" if gpu and device != "cpu" else "cpu")
    if precision == "tf32" and chosen.type == "cpu":
        raise BackendError("a CPU has no TF32 arithmetic; use --precision highest or bf16")
    if dtype == "float64" and chosen.type != "cpu":
        raise BackendError("float64 runs on the CPU only; use --device cpu")
    if world is None or world.size == 1:
        return TorchBackend(chosen, precision, dtype)
    if not importlib.util.find_spec("deepspeed"):
        raise BackendError("training on torch needs DeepSpeed; run: pip install 'parivox[deepspeed]'")
    if chosen.type == "cuda" and world.local_rank >= torch.cuda.device_count():
        raise BackendError(
            f"LOCAL_RANK is {world.local_rank}, and PyTorch sees {torch.cuda.device_count()} GPUs; start at most one"
            " process for each"
        )
    return TorchBackend(chosen, precision, dtype, sharding.initialize(world, chosen.type))
