"""Where each row of a batch ends, when sounds of several lengths are computed as one; twin of `torch_impl.ends`.

A row is filled up to the length that the others have. Inside of `ending` a convolution sees beyond a row's own end
what it sees beyond the end of an array, and a norm does not count what lies there, so that a row becomes what it
becomes alone. One compiled program then serves all lengths up to its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["Padding", "ending", "ends", "kept", "padded"]

Padding = Literal["constant", "reflect", "edge"]

_current: ContextVar[tuple[jax.Array, int] | None] = ContextVar("ends", default=None)


@contextmanager
def ending(lengths: Int[Array, " b"] | None, total: int) -> Iterator[None]:
    """Trace everything inside for rows that end there.

    Args:
        lengths: where each row ends; None: all rows fill the array.
        total: length of the array, in the same unit.
    """
    token = _current.set(None if lengths is None else (lengths, total))
    try:
        yield
    finally:
        _current.reset(token)


def ends(width: int) -> Int[Array, " b"] | None:
    """Where the rows end on an axis of this length, rounded down; None: they all fill it.

    Raises:
        ValueError: neither the axis nor the one that `ending` was told of is a multiple of the other.
    """
    now = _current.get()
    if now is None:
        return None
    lengths, total = now
    if width % total == 0:
        return lengths * (width // total)
    if total % width:
        raise ValueError(f"rows of {total} have no ends on an axis of {width}")
    return lengths // (total // width)


def kept(x: Float[Array, "b *f n c"], axis: int = -2) -> Float[Array, "b *f n c"]:
    """Zeros beyond each row's end; `axis` is that of the frames, counted from the last."""
    last = ends(x.shape[axis])
    return x if last is None else jnp.where(_beyond(x, last, 0, axis), 0, x)


def padded(
    x: Float[Array, "b n c"], left: int, right: int, mode: Padding = "constant"
) -> Float[Array, "b m c"]:
    """`jnp.pad` of the frames, on the right beyond each row's own end; m = left + n + right."""
    last, sizes = ends(x.shape[1]), ((0, 0), (left, right), (0, 0))
    if last is None:
        return jnp.pad(x, sizes, mode=mode)
    if mode == "constant":
        return jnp.pad(kept(x), sizes)
    if mode == "edge":
        whole = jnp.pad(x, sizes, mode="edge")
        edge = jnp.take_along_axis(x, last[:, None, None] - 1, axis=1)
        return jnp.where(_beyond(whole, last, left), edge, whole)
    place = jnp.abs(jnp.arange(-left, x.shape[1] + right))
    end = last[:, None] - 1
    place = jnp.clip(jnp.where(place > end, 2 * end - place, place), 0)
    return jnp.take_along_axis(x, place[:, :, None], axis=1)


def _beyond(x: Array, last: Array, left: int, axis: int = -2) -> Array:
    """True where a frame, counted from `left`, lies beyond its row's end; as many axes as x has."""
    places = jnp.arange(-left, x.shape[axis] - left).reshape(-1, *(1,) * (-axis - 1))
    return places >= last.reshape(-1, *(1,) * (x.ndim - 1))
