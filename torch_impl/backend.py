"""The PyTorch side of `parivox.backend.Backend`; the twin of `jax_impl.backend`."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch

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
)
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.errors import BackendError
from parivox.hparams import DenoiserHParams
from parivox.parallel import World
from torch_impl import sharding
from torch_impl.infer import DenoiserModel, load_denoiser
from torch_impl.optim import AdamState
from torch_impl.train_step import PlainState, TrainState, make_eval, make_step
from torch_impl.weights import from_arrays

__all__ = ["TorchBackend", "create_backend"]


class TorchBackend:
    """PyTorch on one device of each process; trains through DeepSpeed in float32, plainly in float64."""

    name = "torch"

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

    def create_state(
        self, hp: DenoiserHParams, arrays: TrainArrays, config: TrainConfig | None = None
    ) -> TrainState:
        """A training state on the device from named arrays.

        Raises:
            BackendError: float32 training needs DeepSpeed and it is not installed, or DeepSpeed cannot do on this
                device what the config asks for.
        """
        config = config or resolve(hp.deepspeed_config, world_size=self.data_parallel, hparams=hp)
        check_devices(config, self.data_parallel)
        hidden = hp.unet_hidden_dim
        check_moments(arrays, config.optimizer)
        params, exp_avg, exp_avg_sq = (
            from_arrays(tree, hidden, self.dtype, what, self.device) if tree else {}
            for tree, what in (
                (arrays.weights, "the checkpoint"),
                (arrays.exp_avg, "the checkpoint's exp_avg"),
                (arrays.exp_avg_sq, "the checkpoint's exp_avg_sq"),
            )
        )
        if self.dtype == torch.float64:
            if self.world.size > 1:
                raise BackendError(
                    "float64 on PyTorch trains in one process; use --backend jax for several devices"
                )
            if config.precision != "fp32":
                raise BackendError(
                    f"float64 does not go with {config.precision}; use float32, or an fp32 config"
                )
            return PlainState(params, AdamState(arrays.step, exp_avg, exp_avg_sq), hidden, config)
        if not importlib.util.find_spec("deepspeed"):
            raise BackendError("training on torch needs DeepSpeed; run: pip install 'parivox[deepspeed]'")
        from torch_impl.engine import DeepSpeedState

        return DeepSpeedState(params, arrays, hidden, config, self.device.type)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepResult]:
        """One update."""
        check_rows(batch, state.config)
        state, metrics = self._step(state, self._put(batch["noisy"]), self._put(batch["target"]))
        return state, StepResult(**metrics)

    def export_state(self, state: TrainState) -> TrainArrays:
        """The state as named arrays on the host."""
        return state.export()

    def evaluate(self, state: TrainState, batch: Batch) -> tuple[float, np.ndarray]:
        """Loss of a batch and the output, without an update."""
        loss, output = self._eval(state.module, self._put(batch["noisy"]), self._put(batch["target"]))
        return float(loss), output.cpu().numpy()

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

    def denoise(self, model: DenoiserModel, wav: np.ndarray) -> np.ndarray:
        """Denoise (b, t) at 44,100 Hz."""
        return model(wav)

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
