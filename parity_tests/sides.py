"""One backend as the ladder sees it: NumPy in, NumPy out, in a given dtype and precision."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from parivox.backend import Backend, BackendName, Dtype, NamedArrays, Precision, get_backend
from parivox.deepspeed_config import OptimizerConfig, TrainConfig
from parivox.features import StftSpec
from parivox.schedule import update_rates


@dataclass(frozen=True)
class AdamTrace:
    """What an optimizer made of a sequence of gradients."""

    weights: NamedArrays
    exp_avg: NamedArrays
    exp_avg_sq: NamedArrays


@dataclass(frozen=True)
class UpdatePlan:
    """How a sequence of gradients is to be used.

    Attributes:
        optimizers: optimizer of each parameter group.
        group_of: group of each parameter name.
        gradient_clipping: largest norm; 0 means no clipping.
        rates: learning rate of each update, by group, float64.
        betas: betas of each update (k, 2), by group; None leaves them to the optimizers.
    """

    optimizers: Mapping[str, OptimizerConfig]
    group_of: Mapping[str, str]
    gradient_clipping: float
    rates: Mapping[str, np.ndarray]
    betas: Mapping[str, np.ndarray] | None = None

    @classmethod
    def of(cls, config: TrainConfig, names: Iterable[str], updates: int) -> UpdatePlan:
        """What a resolved config with one parameter group says of so many updates."""
        written, counts = update_rates(config.optimizer, config.scheduler), np.arange(updates)
        return cls(
            {"all": config.optimizer},
            dict.fromkeys(names, "all"),
            config.gradient_clipping,
            {"all": written.learning_rate(counts)},
            None if written.betas is None else {"all": written.betas(counts)},
        )


class Pass(NamedTuple):
    """One pass forward and back: loss, output (b, t), gradient by every weight."""

    loss: float
    output: np.ndarray
    grads: NamedArrays


class Judgement(NamedTuple):
    """Losses of the discriminator and of the generator by name, and the gradient of the discriminator's sum."""

    losses: dict[str, float]
    grads: NamedArrays


class Side(Protocol):
    """What `parity_tests.side_jax` and `parity_tests.side_torch` provide."""

    name: BackendName
    dtype: Dtype
    backend: Backend

    def stft(self, x: np.ndarray, spec: StftSpec) -> np.ndarray:
        """Complex spectrogram (b, f, n)."""
        ...

    def istft(self, z: np.ndarray, spec: StftSpec) -> np.ndarray:
        """Signal (b, t)."""
        ...

    def mel(self, x: np.ndarray) -> np.ndarray:
        """Normalised mel spectrogram (b, m, n)."""
        ...

    def magnitude_phase(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Magnitude, cosine, sine."""
        ...

    def shapes(self, hidden: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the denoiser's parameters."""
        ...

    def denoise(self, weights: NamedArrays, hidden: int, x: np.ndarray) -> np.ndarray:
        """Output of the denoiser (b, t)."""
        ...

    def loss_and_grads(self, weights: NamedArrays, hidden: int, x: np.ndarray, y: np.ndarray) -> Pass:
        """Training loss, output of the denoiser, and the gradient of the loss by every weight."""
        ...

    def stft_losses(self, output: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Spectral convergence and distance of log magnitudes of (b, t) sound, (2,)."""
        ...

    def judge(
        self, weights: NamedArrays, fake: np.ndarray, real: np.ndarray, gradients: bool = True
    ) -> Judgement:
        """What the discriminator makes of generated and recorded sound (b, t)."""
        ...

    def sound_gradient(self, weights: NamedArrays, fake: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Gradient by generated sound (b, t) of the adversarial and the STFT losses together."""
        ...

    def learning_rates(self, config: Mapping[str, Any], updates: np.ndarray) -> np.ndarray:
        """Learning rates of these updates, float32."""
        ...

    def adam(self, start: NamedArrays, grads: Sequence[NamedArrays], config: Mapping[str, Any]) -> AdamTrace:
        """Clip and update once for each gradient."""
        ...

    def optimize(self, start: NamedArrays, grads: Sequence[NamedArrays], plan: UpdatePlan) -> AdamTrace:
        """Clip and update once for each gradient, with any optimizer and parameter groups."""
        ...


def open_side(
    name: BackendName, dtype: Dtype = "float32", device: str = "auto", precision: Precision = "highest"
) -> Side:
    """Import one backend. Raises BackendError where it, the device or the precision is missing."""
    backend = get_backend(name, device=device, precision=precision, dtype=dtype)
    return importlib.import_module(f"parity_tests.side_{name}").open_side(backend, dtype, precision)
