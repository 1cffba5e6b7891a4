"""Named NumPy arrays to and from PyTorch parameters; the twin of `jax_impl.weights`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from parivox.weights import check_arrays
from torch_impl.model.denoiser import Denoiser

__all__ = ["abstract_denoiser", "from_arrays", "named_shapes", "to_arrays"]

Params = dict[str, Tensor]


def abstract_denoiser(hidden: int) -> tuple[Denoiser, dict[str, Tensor]]:
    """The denoiser without memory and its parameters by public name; allocates nothing."""
    with torch.device("meta"):
        model = Denoiser(hidden)
    return model, dict(model.named_parameters())


def named_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Public name -> shape of every parameter of the denoiser."""
    return {name: tuple(leaf.shape) for name, leaf in abstract_denoiser(hidden)[1].items()}


def from_arrays(
    arrays: Mapping[str, np.ndarray],
    hidden: int,
    dtype: torch.dtype,
    what: str = "the checkpoint",
    device: torch.device | str = "cpu",
) -> Params:
    """Parameters on the device from named arrays.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    shapes = named_shapes(hidden)
    check_arrays(shapes, arrays, what)
    return {name: torch.tensor(arrays[name], dtype=dtype, device=device) for name in shapes}


def to_arrays(params: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Named arrays on the host, copies."""
    return {name: leaf.detach().cpu().numpy().copy() for name, leaf in params.items()}
