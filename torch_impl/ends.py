"""Where each row of a batch ends, when sounds of several lengths are computed as one; twin of `jax_impl.ends`.

A row is filled up to the length that the others have. Inside of `ending` a convolution sees beyond a row's own end
what it sees beyond the end of an array, and a norm does not count what lies there, so that a row becomes what it
becomes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Padding", "ending", "ends", "kept", "padded"]

Padding = Literal["constant", "reflect", "replicate"]

_current: ContextVar[tuple[Tensor, int] | None] = ContextVar("ends", default=None)


@contextmanager
def ending(lengths: Int[Tensor, " b"] | None, total: int) -> Iterator[None]:
    """Compute everything inside for rows that end there.

    Args:
        lengths: where each row ends; None: all rows fill the array.
        total: length of the array, in the same unit.
    """
    token = _current.set(None if lengths is None else (lengths, total))
    try:
        yield
    finally:
        _current.reset(token)


def ends(width: int) -> Int[Tensor, " b"] | None:
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


def kept(x: Float[Tensor, "b *c n"]) -> Float[Tensor, "b *c n"]:
    """Zeros beyond each row's end."""
    last = ends(x.shape[-1])
    return x if last is None else x.masked_fill(_beyond(x, last, 0), 0)


def padded(
    x: Float[Tensor, "b c n"], left: int, right: int, mode: Padding = "constant"
) -> Float[Tensor, "b c m"]:
    """`F.pad` of the frames, on the right beyond each row's own end; m = left + n + right."""
    last = ends(x.shape[-1])
    if last is None:
        return F.pad(x, (left, right), mode=mode)
    if mode == "constant":
        return F.pad(kept(x), (left, right))
    if mode == "replicate":
        whole = F.pad(x, (left, right), mode="replicate")
        edge = x.gather(-1, (last - 1)[:, None, None].expand(-1, x.shape[1], 1))
        return torch.where(_beyond(whole, last, left), edge, whole)
    place = torch.arange(-left, x.shape[-1] + right, device=x.device).abs()
    end = last[:, None] - 1
    place = torch.where(place > end, 2 * end - place, place).clamp(min=0)
    return x.gather(-1, place[:, None].expand(-1, x.shape[1], -1))


def _beyond(x: Tensor, last: Tensor, left: int) -> Tensor:
    """True where a frame, counted from `left`, lies beyond its row's end; as many axes as x has."""
    places = torch.arange(-left, x.shape[-1] - left, device=x.device)
    return places >= last.reshape(-1, *(1,) * (x.ndim - 1))
