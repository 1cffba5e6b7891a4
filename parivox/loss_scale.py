"""How float16 training scales its loss, step by step, as DeepSpeed 0.19 does.

Small gradients vanish in float16, so the loss is multiplied by a factor before the backward pass and the gradients
are divided by it afterwards. P. Micikevicius et al., "Mixed precision training", 2018. Where a gradient overflows,
the update is skipped and the factor halved; after a while without overflow it is doubled.

Two ways of the engine are kept on purpose: at stage 0 of ZeRO it has no hysteresis, and at every stage the update at
which the factor doubles is divided by the new factor, so its gradient counts half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from parivox.deepspeed_config import LossScaleConfig
from parivox.errors import CheckpointError

FACTOR = 2.0
"""What the scale is multiplied and divided by."""


@dataclass(frozen=True)
class LossScale:
    """Where the loss scale stands before an update.

    Attributes:
        scale: the factor.
        good: updates made since the last overflow, or since the beginning.
        hysteresis: overflows that are left before the factor is halved; of use from stage 1 on.
        skipped: updates that were skipped so far.
    """

    scale: float
    good: int
    hysteresis: int
    skipped: int

    def to_dict(self) -> dict[str, float]:
        """The numbers by name, for a checkpoint."""
        return {name: float(value) for name, value in asdict(self).items()}


def first_scale(config: LossScaleConfig) -> LossScale:
    """Where a run begins."""
    scale = config.static or FACTOR**config.initial_scale_power
    return LossScale(float(scale), 0, config.hysteresis, 0)


def restored_scale(config: LossScaleConfig, found: Mapping[str, float]) -> LossScale:
    """Where a run goes on: the numbers of a checkpoint, or the beginning where it has none.

    A run that had another precision before begins with its scale anew. A static factor is the config's.

    Raises:
        CheckpointError: a number is missing, unknown, or out of range.
    """
    if not found:
        return first_scale(config)
    names = set(LossScale.__dataclass_fields__)
    if set(found) != names or not all(value >= 0 for value in found.values()) or not found["scale"] > 0:
        raise CheckpointError(
            f"the checkpoint's loss scale is {dict(found)}; it must have {', '.join(sorted(names))}, none below 0."
            " Use another checkpoint"
        )
    scale = config.static or found["scale"]
    # A run may go on with another hysteresis than it was begun with; it never waits for more overflows than that.
    left = min(max(1, int(found["hysteresis"])), config.hysteresis)
    return LossScale(float(scale), int(found["good"]), left, int(found["skipped"]))


def after_update(state: LossScale, config: LossScaleConfig) -> LossScale:
    """Where the scale stands after an update without overflow; the same update is divided by this new factor."""
    if config.static:
        return state
    grows = state.good > 0 and state.good % config.window == 0
    refilled = grows or config.consecutive_hysteresis
    return LossScale(
        state.scale * FACTOR if grows else state.scale,
        state.good + 1,
        config.hysteresis if refilled else state.hysteresis,
        state.skipped,
    )


def after_overflow(state: LossScale, config: LossScaleConfig, stage: int) -> LossScale | None:
    """Where the scale stands after an overflow, which skips the update.

    None where training must end, as in the engine: from stage 1 on, where the factor is at its minimum already.
    """
    skipped = state.skipped + 1
    if config.static:
        return replace(state, skipped=skipped)
    if stage > 0 and state.hysteresis > 1:
        return LossScale(state.scale, 0, state.hysteresis - 1, skipped)
    if stage > 0 and state.scale == config.min_scale:
        return None
    return LossScale(max(state.scale / FACTOR, config.min_scale), 0, state.hysteresis, skipped)


class RunningScale:
    """The loss scale of a run, moved along with its updates; `state` is None where the precision needs none."""

    def __init__(self, config: LossScaleConfig | None, stage: int, found: Mapping[str, float] | None = None):
        """Begin, or go on from the numbers of a checkpoint.

        Args:
            config: of float16; None for other precisions.
            stage: of ZeRO.
            found: numbers of a checkpoint, as from `to_dict`.

        Raises:
            CheckpointError: the checkpoint's numbers make no sense.
        """
        self._config, self._stage = config, stage
        self.state = None if config is None else restored_scale(config, found or {})

    @property
    def factor(self) -> float:
        """What the loss is multiplied by at the next update."""
        return self.state.scale if self.state else 1.0

    def factors(self) -> tuple[float, float] | None:
        """The factor on the loss, and the one by which the gradients are then divided; None without a scale."""
        if self._config is None or self.state is None:
            return None
        return self.state.scale, after_update(self.state, self._config).scale

    def made(self, finite: bool) -> tuple[bool, bool]:
        """Move on after an update; returns whether all is well, and whether the update was skipped."""
        if self._config is None or self.state is None:
            return finite, False
        if finite:
            self.state = after_update(self.state, self._config)
            return True, False
        lower = after_overflow(self.state, self._config, self._stage)
        self.state = lower or self.state
        return lower is not None, lower is not None

    def to_dict(self) -> dict[str, float]:
        """The numbers for a checkpoint; none without a scale."""
        return self.state.to_dict() if self.state else {}
