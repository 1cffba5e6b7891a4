"""Learning rate and betas of an update in PyTorch; the twin of `jax_impl.schedule`.

The DeepSpeed engine has its own scheduler; this one drives the plain optimizer of `torch_impl.optim`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from parivox.schedule import from_deepspeed, rates_from_deepspeed

__all__ = ["beta_schedule", "update_schedule"]


def update_schedule(config: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    """A schedule: update (from 0) -> learning rate, float32, as the DeepSpeed engine with this config has it.

    Raises:
        ConfigError: the config names a scheduler that is not supported, or a value makes no sense.
    """
    schedule = from_deepspeed(config)
    return lambda count: torch.tensor(schedule(count), dtype=torch.float32)


def beta_schedule(config: Mapping[str, Any]) -> Callable[[Any], Tensor] | None:
    """Update (from 0) -> betas (..., 2), float32, as OneCycle moves them; None where they stay as they are.

    Raises:
        ConfigError: the config names a scheduler that is not supported, or a value makes no sense.
    """
    schedule = rates_from_deepspeed(config).betas
    return None if schedule is None else lambda count: torch.tensor(schedule(count), dtype=torch.float32)
