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
    check_moments,
    check_rows,
)
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.errors import BackendError
from parivox.hparams import DenoiserHParams
from torch_impl.infer import DenoiserModel, load_denoiser
from torch_impl.optim import AdamState
from torch_impl.train_step import PlainState, TrainState, make_eval, make_step
from torch_impl.weights import from_arrays

__all__ = ["TorchBackend", "create_backend"]


class TorchBackend:
    """PyTorch on one device; trains through DeepSpeed in float32 and through the plain optimizer in float64."""

    name = "torch"

    def __init__(self, device: torch.device, precision: Precision, dtype: Dtype):
        self.device = device
        self.precision: Precision = precision
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._step = make_step(precision, device.type)
        self._eval = make_eval(precision, device.type)

    def describe(self) -> dict[str, str]:
        """Device, precision and library versions."""
        cuda = self.device.type == "cuda"
        text = {
            "backend": "torch",
            "device": f"cuda: {torch.cuda.get_device_name(self.device)}" if cuda else "cpu",
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
        config = config or resolve(hp.deepspeed_config, hparams=hp)
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
    device: str = "auto", precision: Precision = "highest", dtype: Dtype = "float32"
) -> TorchBackend:
    """Set up a device. See `parivox.backend.get_backend`.

    Raises:
        BackendError: the device, precision or dtype is not available here.
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
    return TorchBackend(chosen, precision, dtype)
