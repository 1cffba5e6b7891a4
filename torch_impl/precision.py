"""Arithmetic of convolutions and matrix products in PyTorch; the twin of `jax_impl.precision`.

`highest` is float32 (TF32 switched off, also in cuDNN, where it is on by default), `tf32` is what an
NVIDIA GPU calls so, `bf16` is autocast: convolutions round their operands to bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from parivox.backend import Precision

__all__ = ["arithmetic"]


@contextmanager
def arithmetic(precision: Precision, device: str = "cpu") -> Iterator[None]:
    """Compute everything inside with this precision; the global switches are put back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
