"""Named NumPy arrays to and from PyTorch parameters; the twin of `jax_impl.weights`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from parivox.enhancer_tables import TILE
from parivox.hparams import EnhancerHParams
from parivox.weights import check_arrays
from parivox.weights_discriminator import discriminator_specs
from parivox.weights_enhancer import check_enhancer
from torch_impl.model.conv import Conv1d, ConvTranspose1d
from torch_impl.model.denoiser import Denoiser
from torch_impl.model.discriminator import Discriminator
from torch_impl.model.enhancer import Enhancer

__all__ = [
    "abstract_denoiser",
    "abstract_discriminator",
    "abstract_enhancer",
    "bind_discriminator",
    "bind_enhancer",
    "discriminator_from_arrays",
    "enhancer_from_arrays",
    "from_arrays",
    "named_shapes",
    "to_arrays",
]

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


def abstract_enhancer(
    hp: EnhancerHParams, folded: bool = False, kind: type[Enhancer] = Enhancer
) -> tuple[Enhancer, dict[str, Tensor], dict[str, Tensor]]:
    """The enhancer without memory, its parameters and its buffers by public name; allocates nothing.

    Args:
        hp: hyperparameters, which give the sizes.
        folded: whether it is for inference: it takes what `weight_norm.fold` makes of the parameters, and its
            vocoder works in tiles.
        kind: the enhancer's class, or one with another forward pass.
    """
    with torch.device("meta"):
        model = kind(hp)
        for part in list(model.modules()) if folded else ():
            if isinstance(part, Conv1d | ConvTranspose1d):
                part.fold()
        model.vocoder.tile = TILE if folded else None
    return model, dict(model.named_parameters()), dict(model.named_buffers())


def enhancer_from_arrays(
    arrays: Mapping[str, np.ndarray],
    hp: EnhancerHParams,
    dtype: torch.dtype,
    what: str = "the checkpoint",
    device: torch.device | str = "cpu",
) -> tuple[Params, Params]:
    """Parameters and buffers on the device from named arrays; buffers that are absent are computed.

    Raises:
        CheckpointError: listing parameters and statistics that are missing, and every extra or misshapen tensor.
    """
    arrays = {**arrays, **check_enhancer(arrays, hp, what)}
    _, params, buffers = abstract_enhancer(hp)

    def put(names: Mapping[str, object]) -> Params:
        return {name: torch.tensor(arrays[name], dtype=dtype, device=device) for name in names}

    return put(params), put(buffers)


def bind_enhancer(model: Enhancer, params: Params, buffers: Params) -> Enhancer:
    """The module that `abstract_enhancer` gave with these parameters and buffers, without a copy."""
    model.load_state_dict({**params, **buffers}, assign=True)
    return model.requires_grad_(True)


def abstract_discriminator(
    stft_cfgs: Sequence[Mapping[str, int]],
) -> tuple[Discriminator, dict[str, Tensor]]:
    """The discriminator without memory and its parameters by public name; allocates nothing."""
    with torch.device("meta"):
        model = Discriminator(stft_cfgs)
    return model, dict(model.named_parameters())


def discriminator_from_arrays(
    arrays: Mapping[str, np.ndarray],
    dtype: torch.dtype,
    what: str = "the checkpoint's discriminator",
    device: torch.device | str = "cpu",
) -> Params:
    """Parameters on the device from named arrays.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    check_arrays({name: spec.shape for name, spec in discriminator_specs().items()}, arrays, what)
    return {name: torch.tensor(array, dtype=dtype, device=device) for name, array in arrays.items()}


def bind_discriminator(model: Discriminator, params: Params) -> Discriminator:
    """The module that `abstract_discriminator` gave with these parameters, without a copy."""
    model.load_state_dict(params, assign=True)
    return model.requires_grad_(True)


def to_arrays(params: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Named arrays on the host, copies."""
    return {name: leaf.detach().cpu().numpy().copy() for name, leaf in params.items()}
