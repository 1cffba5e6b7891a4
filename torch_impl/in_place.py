"""Results that take the place of what they are computed from.

Where no gradient is wanted, a value may be written over as soon as nothing else needs it. To clear new memory, which
the system does page by page, takes longer than most element-wise operations on it. JAX's compiler does this by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["added", "gated", "may_overwrite"]


def may_overwrite(x: Tensor, *others: Tensor) -> bool:
    """Whether x can take the place of what is computed from it and others: no gradient is wanted, all of one dtype."""
    return not torch.is_grad_enabled() and all(other.dtype == x.dtype for other in others)


def added(x: Tensor, y: Tensor) -> Tensor:
    """x + y; x, which is as large as the sum and which nothing else may need, becomes it where it can."""
    return x.add_(y) if may_overwrite(x, y) else x + y


def gated(signal: Tensor, gate: Tensor) -> Tensor:
    """tanh(signal) * sigmoid(gate); both, which nothing else may need, are written over where that can be."""
    if may_overwrite(signal, gate):
        return signal.tanh_().mul_(gate.sigmoid_())
    return torch.tanh(signal) * torch.sigmoid(gate)
