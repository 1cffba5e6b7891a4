"""One backend as the ladder sees it: NumPy in, NumPy out, in a given dtype and precision."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from parivox.backend import Backend, BackendName, Dtype, NamedArrays, Precision, get_backend
from parivox.features import StftSpec


@dataclass(frozen=True)
class AdamTrace:
    """What an optimizer made of a sequence of gradients."""

    weights: NamedArrays
    exp_avg: NamedArrays
    exp_avg_sq: NamedArrays


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

    def loss_and_grads(
        self, weights: NamedArrays, hidden: int, x: np.ndarray, y: np.ndarray
    ) -> tuple[float, NamedArrays]:
        """Training loss and its gradient by every weight."""
        ...

    def learning_rates(self, config: Mapping[str, Any], updates: np.ndarray) -> np.ndarray:
        """Learning rates of these updates, float32."""
        ...

    def adam(self, start: NamedArrays, grads: Sequence[NamedArrays], config: Mapping[str, Any]) -> AdamTrace:
        """Clip and update once for each gradient."""
        ...


def open_side(
    name: BackendName, dtype: Dtype = "float32", device: str = "auto", precision: Precision = "highest"
) -> Side:
    """Import one backend. Raises BackendError where it, the device or the precision is missing."""
    backend = get_backend(name, device=device, precision=precision, dtype=dtype)
    return importlib.import_module(f"parity_tests.side_{name}").open_side(backend, dtype, precision)
