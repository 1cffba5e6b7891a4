"""What holds between the keys of a configuration: the batch sizes, the precision, and what excludes what."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from parivox.deepspeed_reader import Reader
from parivox.deepspeed_recipes import OPTIMIZER_NAMES, REFUSED_OPTIMIZERS, SCHEDULERS
from parivox.deepspeed_values import show

TRAIN, MICRO, STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"

Sizes = tuple[int, int, int]
"""Batch of an update, batch of a pass, passes; in DeepSpeed's words the three keys above."""


def batch_sizes(reader: Reader, found: Mapping[str, Any], world_size: int) -> Sizes | None:
    """The three batch sizes, those that are missing or "auto" found as DeepSpeed finds them; None with a problem.

    "auto" for the batch of a pass takes `batch_size_per_gpu`, unless the other two say what it is.
    """
    train, micro, steps = (found.get(name) for name in (TRAIN, MICRO, STEPS))
    if not reader.bad.isdisjoint((TRAIN, MICRO, STEPS)):
        return None
    if micro is None and MICRO in reader.auto and reader.hparams and (train is None or steps is None):
        micro = reader.hparams.batch_size_per_gpu
    if train is None and micro is None:
        given = f"'auto' needs hyperparameters to take batch_size_per_gpu from; write a number for '{MICRO}'"
        missing = f'is missing, and so is {TRAIN}; write one of them, as "{MICRO}": 16'
        reader.wrong(MICRO, given if MICRO in reader.auto else missing)
        return None
    if steps is None:
        steps = train // micro // world_size if train is not None and micro is not None else 1
    if micro is None:
        micro = train // world_size // steps  # type: ignore[operator]
    if train is None:
        train = micro * steps * world_size
    if micro < 1 or steps < 1 or train != micro * steps * world_size:
        reader.wrong(
            TRAIN,
            f"is {train}, but {MICRO} x {STEPS} x ranks is {micro} x {steps} x {world_size} ="
            f" {micro * steps * world_size}; make them agree, or leave one of the three out",
        )
        return None
    return train, micro, steps


def precision(reader: Reader, found: Mapping[str, Any]) -> Literal["fp32", "fp16", "bf16"]:
    """What the network computes in."""
    half, brain = (found.get(name, {}).get("enabled", False) for name in ("fp16", "bf16"))
    if half and brain:
        reader.wrong("fp16.enabled", "is true, and so is bf16.enabled; choose one of them")
    return "fp16" if half else "bf16" if brain else "fp32"


def optimizer_kind(reader: Reader, name: str) -> Literal["adam", "adamw", "lamb", "lion", "sgd"] | None:
    """The optimizer that DeepSpeed would take for a name: its own in any case, torch's by the exact name."""
    lower = name.lower()
    if name == "SGD" or lower in ("adam", "adamw", "lamb", "lion"):
        return lower  # type: ignore[return-value]
    refused = {
        **REFUSED_OPTIMIZERS,
        "sgd": "DeepSpeed takes it from torch.optim by its exact name; write SGD",
    }
    _not_a_type(reader, "optimizer", name, refused.get(lower), OPTIMIZER_NAMES.values())
    return None


def scheduler_kind(
    reader: Reader, name: str
) -> Literal["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest"] | None:
    """The scheduler of a name; DeepSpeed takes the exact name only."""
    if name in SCHEDULERS:
        return name  # type: ignore[return-value]
    _not_a_type(reader, "scheduler", name, None, SCHEDULERS)
    return None


def _not_a_type(reader: Reader, section: str, name: str, note: str | None, known: Iterable[str]) -> None:
    lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name[:80].lower(), lower, n=1, cutoff=0.7)
    remedy = f"did you mean {lower[near[0]]}?" if near else f"use one of {', '.join(lower.values())}"
    reader.wrong(f"{section}.type", f"is {show(name)}: {note}" if note else f"is {show(name)}; {remedy}")


def optimizer_fits(
    reader: Reader, kind: str, params: Mapping[str, Any], found: Mapping[str, Any], stage: int
) -> None:
    """Note what the engine would refuse about an optimizer: at this stage of ZeRO, with this loss scale."""
    scale = found.get("fp16", {})
    if kind == "lamb":
        if stage:
            reader.wrong(
                "zero_optimization.stage",
                f"is {stage}, and Lamb needs whole tensors for its coefficients; set it to 0, or use AdamW",
            )
        if scale.get("enabled", False) and scale.get("loss_scale", 0.0):
            reader.wrong(
                "fp16.loss_scale", "is fixed, and DeepSpeed has Lamb with a dynamic one only; set it to 0"
            )
        if params["min_coeff"] > params["max_coeff"]:
            reader.wrong("optimizer.params.min_coeff", "is above max_coeff; exchange them")
    if kind == "sgd":
        if stage and not found.get("zero_allow_untested_optimizer", False):
            reader.wrong(
                "zero_allow_untested_optimizer",
                "DeepSpeed wants it true for SGD with ZeRO; write it at the top level, or set the stage to 0",
            )
        if params["nesterov"] and (params["momentum"] == 0 or params["dampening"] != 0):
            reader.wrong("optimizer.params.nesterov", "needs a momentum above 0 and a dampening of 0")


def dtypes_fit(reader: Reader, found: Mapping[str, Any], dtype: str) -> None:
    """Note dtypes of sums that both backends have no equal for."""
    accumulated = found.get("data_types", {}).get("grad_accum_dtype", dtype)
    if accumulated != dtype:
        reader.wrong(
            "data_types.grad_accum_dtype",
            f"is '{accumulated}', and gradients are summed in the precision of the network, {dtype}; remove it",
        )
    sent = found.get("communication_data_type", dtype)
    if sent not in ("fp32", dtype):
        reader.wrong(
            "communication_data_type",
            f"is '{sent}', which rounds otherwise in JAX; remove it or write 'fp32'",
        )


def scale_fits(reader: Reader, found: Mapping[str, Any], dtype: str, stage: int) -> None:
    """Remark on a hysteresis that the engine does not heed."""
    if dtype == "fp16" and stage == 0 and {"hysteresis", "consecutive_hysteresis"} & found["fp16"].keys():
        reader.remarks.append("fp16.hysteresis: DeepSpeed heeds it at ZeRO stages 1 to 3, and not at stage 0")


def division_fits(reader: Reader, found: Mapping[str, Any], zero: Mapping[str, Any]) -> None:
    """Note divisors of gradients where the engine takes none."""
    stage = zero.get("stage", 0)
    if stage < 2 or (stage == 2 and not zero.get("reduce_scatter", True)):
        return
    remedy = f"DeepSpeed has it at ZeRO stages 0 and 1; remove it, or lower the stage from {stage}"
    if found.get("prescale_gradients", False):
        reader.wrong("prescale_gradients", f"is true: {remedy}")
    if found.get("gradient_predivide_factor", 1.0) != 1.0:
        reader.wrong("gradient_predivide_factor", f"is {show(found['gradient_predivide_factor'])}: {remedy}")


def momentum_fits(reader: Reader, kind: str, scheduler: str, params: Mapping[str, Any]) -> None:
    """Note a cycle of a momentum that the engine would leave alone."""
    if kind != "sgd" or scheduler != "OneCycle" or not params.get("cycle_momentum", True):
        return
    for name in ("cycle_momentum", "cycle_min_mom", "cycle_max_mom", "decay_mom_rate"):
        if name in params:
            reader.wrong(
                f"scheduler.params.{name}", "DeepSpeed cycles betas, and SGD has none; remove it, or use Adam"
            )
