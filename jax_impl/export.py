"""The denoiser as a file that runs without Parivox, from JAX; the twin of `torch_impl.export`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float

from jax_impl.ends import ending, kept
from jax_impl.objective import bind
from jax_impl.precision import arithmetic
from jax_impl.weights import abstract_denoiser, from_arrays
from parivox.exported import BLOCK, SHORTEST

__all__ = ["PLATFORMS", "export_denoiser", "load_program"]

PLATFORMS = ("cpu", "cuda", "tpu")
"""What the program is lowered for; it computes on any of them, wherever it was made."""


def export_denoiser(arrays: Mapping[str, np.ndarray], hidden: int, metadata: Mapping[str, str]) -> bytes:
    """StableHLO as `jax.export` serialises it, for any number of rows of any length.

    A row is filled up to whole blocks of 16 frames and computed as `parivox.backend.Backend.denoise` computes rows
    that end early. So every size inside is a multiple of one number, which a compiler can reason about.

    Args:
        arrays: named arrays of a denoiser.
        hidden: its width.
        metadata: kept as JSON in the program's `fun_name`, the only text that the form has a place for.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    graph, _ = abstract_denoiser(hidden)
    params = from_arrays(arrays, hidden, jnp.dtype("float32"))

    def denoise(x: Float[Array, "b t"]) -> Float[Array, "b t"]:
        b, t = x.shape
        total = (t + BLOCK - 1) // BLOCK * BLOCK
        wide = jnp.pad(x, ((0, 0), (0, total - t)))
        # Behind a barrier, or XLA would compute every mask with its slow interpreter while it compiles.
        lengths = jax.lax.optimization_barrier(jnp.full((b,), jnp.asarray(t), jnp.int32))
        with arithmetic("highest"), ending(lengths, total):
            return bind(graph, params)(kept(wide[..., None])[..., 0])[:, :t]

    scope = export.SymbolicScope([f"t >= {SHORTEST}", "b >= 1"])
    shape = export.symbolic_shape("b, t", scope=scope)
    program = export.export(jax.jit(denoise), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.float32))
    return bytes(dataclasses.replace(program, fun_name=json.dumps(dict(metadata))).serialize())


def load_program(program: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """A function from (b, t) to (b, t) on the host of what `export_denoiser` gave."""
    call = jax.jit(export.deserialize(bytearray(program)).call)
    return lambda x: np.asarray(call(x))
