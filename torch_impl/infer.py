"""Inference in PyTorch; the twin of `jax_impl.infer`. Needs no DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float

from parivox.backend import Precision
from torch_impl.precision import arithmetic
from torch_impl.train_step import bind
from torch_impl.weights import from_arrays

__all__ = ["DenoiserModel", "load_denoiser"]

DenoiserModel = Callable[[Float[np.ndarray, "b t"]], Float[np.ndarray, "b t"]]
"""(b, t) at 44,100 Hz on the host -> denoised (b, t) on the host."""


def load_denoiser(
    arrays: Mapping[str, np.ndarray],
    hidden: int = 16,
    dtype: str = "float32",
    precision: Precision = "highest",
    device: torch.device | str = "cpu",
) -> DenoiserModel:
    """A denoiser from named arrays.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    kind: torch.dtype = getattr(torch, dtype)
    module = bind(hidden, from_arrays(arrays, hidden, kind, device=device)).eval()

    @torch.inference_mode()
    def forward(x: np.ndarray) -> np.ndarray:
        with arithmetic(precision, torch.device(device).type):
            return module(torch.tensor(x, dtype=kind, device=device)).cpu().numpy()

    return forward
