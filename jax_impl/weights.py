"""Named NumPy arrays to and from JAX parameters; the twin of `torch_impl.weights`.

Modules are laid out so that the path of a parameter, joined with dots, is its public name.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_impl.model.denoiser import Denoiser
from parivox.weights import check_arrays

__all__ = ["abstract_denoiser", "from_arrays", "named_shapes", "to_arrays"]

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
    # A copy: the CPU device would otherwise borrow the caller's memory, and what is written there later counts.
    return {name: jnp.array(arrays[name], dtype, copy=True) for name in shapes}


def to_arrays(params: Params) -> dict[str, np.ndarray]:
    """Named arrays on the host, copies."""
    return {name: np.array(leaf) for name, leaf in params.items()}
