"""Learning-rate schedules in float64, as DeepSpeed's scheduler classes compute them.

The rate is computed on the host and enters a step as a number. In float32 on the device the same formula
misses the engine's value in the last bit at a good part of the steps; on the host both backends use the
engine's own arithmetic, and the values are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from parivox.errors import ConfigError

Schedule = Callable[[Int[np.ndarray, "*k"]], Float[np.ndarray, "*k"]]
"""Scheduler iterations (from 0), of any shape -> learning rates, float64."""


def warmup_decay_lr(
    *,
    total_num_steps: int,
    warmup_min_lr: float = 0.0,
    warmup_max_lr: float = 0.001,
    warmup_num_steps: int = 1000,
    warmup_type: str = "log",
) -> Schedule:
    """DeepSpeed's WarmupDecayLR: from the minimum to the maximum, then linearly back to the minimum, not to 0.

    Args:
        total_num_steps: iteration at which the minimum is reached again, and held.
        warmup_min_lr: rate at iteration 0.
        warmup_max_lr: rate at the end of the warm-up.
        warmup_num_steps: length of the warm-up; at least 2, as in DeepSpeed.
        warmup_type: `linear` or `log`.

    Raises:
        ConfigError: `warmup_type` is another word.
    """
    if warmup_type not in ("linear", "log"):
        raise ConfigError(f"warmup_type is '{warmup_type}'; DeepSpeed knows 'linear' and 'log'")
    warmup = max(2, warmup_num_steps)
    decay = float(max(1.0, total_num_steps - warmup))
    # math.log and not np.log: they differ in the last bit, and the engine uses the first.
    logarithms = np.array([math.log(i + 1) for i in range(warmup)]) * (1.0 / math.log(warmup))

    def schedule(iteration: np.ndarray) -> np.ndarray:
        iteration = np.asarray(iteration)
        rising = logarithms[np.minimum(iteration, warmup - 1)] if warmup_type == "log" else iteration / warmup
        falling = np.maximum(0.0, (total_num_steps - iteration) / decay)
        gamma = np.where(iteration < warmup, rising, falling)
        # asarray: arithmetic turns an array without axes into a NumPy scalar.
        return np.asarray(warmup_min_lr + (warmup_max_lr - warmup_min_lr) * gamma)

    return schedule


def from_deepspeed(config: Mapping[str, Any]) -> Schedule:
    """The learning rates of updates (from 0) under a DeepSpeed config.

    The engine steps the optimizer and then the scheduler, and its first rate is the minimum: update k uses the
    schedule at max(k - 1, 0), so the first two updates run at the minimum.

    Raises:
        ConfigError: the config names another scheduler than WarmupDecayLR.
    """
    kind = config["scheduler"]["type"]
    if kind != "WarmupDecayLR":
        raise ConfigError(f"scheduler '{kind}' is not supported; use WarmupDecayLR")
    schedule = warmup_decay_lr(**config["scheduler"]["params"])
    return lambda update: schedule(np.asarray(np.maximum(np.asarray(update) - 1, 0)))
