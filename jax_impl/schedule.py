"""Learning rate and betas of an update in JAX; the twin of `torch_impl.schedule`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from parivox.schedule import from_deepspeed, rates_from_deepspeed

__all__ = ["beta_schedule", "update_schedule"]


def update_schedule(config: Mapping[str, Any]) -> Callable[[Any], jax.Array]:
    """An optax schedule: update (from 0) -> learning rate, as the DeepSpeed engine with this config has it.

    The rate is float32. The count is an integer or a NumPy array of them: the rate is computed on the
    host in float64 and enters the step as an argument (`parivox.schedule` says why).

    Raises:
        ConfigError: the config names a scheduler that is not supported, or a value makes no sense.
    """
    schedule = from_deepspeed(config)
    return lambda count: jnp.asarray(schedule(count), jnp.float32)


def beta_schedule(config: Mapping[str, Any]) -> Callable[[Any], jax.Array] | None:
    """Update (from 0) -> betas (..., 2), float32, as OneCycle moves them; None where they stay as they are.

    Raises:
        ConfigError: the config names a scheduler that is not supported, or a value makes no sense.
    """
    schedule = rates_from_deepspeed(config).betas
    return None if schedule is None else lambda count: jnp.asarray(schedule(count), jnp.float32)
