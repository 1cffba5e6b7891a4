"""Named NumPy arrays to and from JAX parameters; the twin of `torch_impl.weights`.

Modules are laid out so that the path of a parameter, joined with dots, is its public name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_impl.model.conv import Conv1d, ConvTranspose1d
from jax_impl.model.denoiser import Denoiser
from jax_impl.model.discriminator import Discriminator
from jax_impl.model.enhancer import Enhancer
from jax_impl.model.normalizer import Buffer
from parivox.enhancer_tables import TILE
from parivox.hparams import EnhancerHParams
from parivox.weights import check_arrays
from parivox.weights_discriminator import discriminator_specs
from parivox.weights_enhancer import check_enhancer

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

Params = dict[str, jax.Array]


def abstract_denoiser(hidden: int) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """Structure of the denoiser and its parameters' shapes by public name; allocates nothing."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Denoiser(hidden)), nnx.Param)
    return graph, {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def named_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Public name -> shape of every parameter of the denoiser."""
    return {name: tuple(leaf.shape) for name, leaf in abstract_denoiser(hidden)[1].items()}


def from_arrays(
    arrays: Mapping[str, np.ndarray], hidden: int, dtype: jnp.dtype, what: str = "the checkpoint"
) -> Params:
    """Parameters on the device from named arrays.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    shapes = named_shapes(hidden)
    check_arrays(shapes, arrays, what)
    # A copy: the CPU device would otherwise borrow the caller's memory, and what is written there later counts. NumPy
    # makes it; JAX would compile a program for each shape to copy with.
    return {name: jax.device_put(np.array(arrays[name], dtype)) for name in shapes}


def abstract_enhancer(
    hp: EnhancerHParams, folded: bool = False
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct], dict[str, jax.ShapeDtypeStruct]]:
    """Structure of the enhancer, its parameters' and its buffers' shapes by public name; allocates nothing.

    Args:
        hp: hyperparameters, which give the sizes.
        folded: whether it is for inference: it takes what `weight_norm.fold` makes of the parameters, and its
            vocoder works in tiles.
    """

    def make() -> Enhancer:
        model = Enhancer(hp)
        for _, part in list(nnx.iter_graph(model)) if folded else ():
            if isinstance(part, Conv1d | ConvTranspose1d):
                part.fold()
        model.vocoder.tile = TILE if folded else None
        return model

    graph, *states = nnx.split(nnx.eval_shape(make), nnx.Param, Buffer)
    named = [
        {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
        for state in states
    ]
    return graph, named[0], named[1]


def enhancer_from_arrays(
    arrays: Mapping[str, np.ndarray], hp: EnhancerHParams, dtype: jnp.dtype, what: str = "the checkpoint"
) -> tuple[Params, Params]:
    """Parameters and buffers on the device from named arrays; buffers that are absent are computed.

    Raises:
        CheckpointError: listing parameters and statistics that are missing, and every extra or misshapen tensor.
    """
    arrays = {**arrays, **check_enhancer(arrays, hp, what)}
    _, params, buffers = abstract_enhancer(hp)

    # A copy: the CPU device would otherwise borrow the caller's memory, and what is written there later counts. NumPy
    # makes it; JAX would compile a program for each shape to copy with.
    def put(names: Mapping[str, object]) -> Params:
        return {name: jax.device_put(np.array(arrays[name], dtype)) for name in names}

    return put(params), put(buffers)


def bind_enhancer(graph: nnx.GraphDef, params: Params, buffers: Params) -> Enhancer:
    """The module with these parameters and buffers."""
    leaves = [
        (tuple(int(p) if p.isdigit() else p for p in name.split(".")), kind(leaf))
        for kind, named in ((nnx.Param, params), (Buffer, buffers))
        for name, leaf in named.items()
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def abstract_discriminator(
    stft_cfgs: Sequence[Mapping[str, int]],
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """Structure of the discriminator and its parameters' shapes by public name; allocates nothing."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Discriminator(stft_cfgs)), nnx.Param)
    return graph, {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def discriminator_from_arrays(
    arrays: Mapping[str, np.ndarray], dtype: jnp.dtype, what: str = "the checkpoint's discriminator"
) -> Params:
    """Parameters on the device from named arrays.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    check_arrays({name: spec.shape for name, spec in discriminator_specs().items()}, arrays, what)
    return {name: jax.device_put(np.array(array, dtype)) for name, array in arrays.items()}


def bind_discriminator(graph: nnx.GraphDef, params: Params) -> Discriminator:
    """The module with these parameters."""
    leaves = [
        (tuple(int(p) if p.isdigit() else p for p in name.split(".")), nnx.Param(leaf))
        for name, leaf in params.items()
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def to_arrays(params: Params) -> dict[str, np.ndarray]:
    """Named arrays on the host, copies."""
    return {name: np.array(leaf) for name, leaf in params.items()}
