"""The weights that a run begins with: drawn from its seed, or another run's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from parivox.backend import NamedArrays, TrainArrays, first_arrays
from parivox.checkpoint import Checkpoint
from parivox.deepspeed_config import OptimizerConfig, TrainConfig
from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.model_files import ABOUT, Model, read_model, report_buffers
from parivox.stages import Stage, different_sizes, has_judge, stage_of
from parivox.weights import Initialization, initial_denoiser
from parivox.weights_discriminator import initial_discriminator
from parivox.weights_enhancer import initial_enhancer, trained_names

FLOW = "lcfm.cfm."
"""Before the names of the flow's parameters, which the second stage begins anew."""


@dataclass(frozen=True)
class Beginning:
    """What a run begins with.

    Attributes:
        arrays: the state of step 0.
        buffers: stored buffers of the model that it goes on from; empty where there were none.
        origin: what the checkpoints say of the models that it goes on from.
    """

    arrays: TrainArrays
    buffers: NamedArrays = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)


def first_checkpoint(
    hp: HParams,
    seed: int,
    init: Initialization,
    config: TrainConfig,
    message: Callable[[str], object] = print,
) -> Beginning:
    """The state of step 0, and where its weights come from.

    The enhancer takes its denoiser from `denoiser_run_dir`, where one is given. The second stage takes everything
    but the flow from `enhancer_stage1_run_dir`, its stored buffers too. Either is a run or a model in another form.

    Raises:
        ConfigError: the second stage is given no first one, or sizes differ.
        CheckpointError: a model that is named is missing, damaged, or does not fit its hyperparameters.
    """
    if isinstance(hp, EnhancerHParams):
        return _enhancer(hp, seed, init, config, message)
    width = hp.unet_hidden_dim if isinstance(hp, DenoiserHParams) else 0
    return Beginning(arrays_of(hp, initial_denoiser(seed, width, init), seed, config.optimizer))


def arrays_of(hp: HParams, weights: NamedArrays, seed: int, optimizer: OptimizerConfig) -> TrainArrays:
    """The state of step 0 with these weights: moments for what is trained, and a discriminator where there is one.

    Args:
        hp: hyperparameters of the run.
        weights: of the whole model.
        seed: of the discriminator's initial weights.
        optimizer: which says what moments there are.
    """
    if not isinstance(hp, EnhancerHParams):
        return first_arrays(weights, optimizer)
    arrays = first_arrays({name: weights[name] for name in trained_names(hp)}, optimizer)
    judge = first_arrays(initial_discriminator(seed), optimizer) if has_judge(hp) else None
    return replace(arrays, weights=weights, discriminator=judge)


def start_arrays(checkpoint: Checkpoint) -> TrainArrays:
    """What a backend starts from: a checkpoint's arrays, and an enhancer's own buffers beside the weights.

    Those of a denoiser belong to a spectrogram that it does not compute.
    """
    arrays = checkpoint.arrays
    if not checkpoint.buffers or checkpoint.meta.model == "denoiser":
        return arrays
    return replace(arrays, weights={**arrays.weights, **checkpoint.buffers})


def _enhancer(
    hp: EnhancerHParams,
    seed: int,
    init: Initialization,
    config: TrainConfig,
    message: Callable[[str], object],
) -> Beginning:
    weights, buffers, origin = initial_enhancer(seed, hp, init), {}, {}
    if stage_of(hp) == "enhancer-stage2":
        path = hp.enhancer_stage1_run_dir
        if path is None:
            raise ConfigError(
                "enhancer_stage1_run_dir is not given; the second stage begins with the auto-encoder and the vocoder of"
                " the first: give --enhancer-stage1-run-dir"
            )
        before, origin["enhancer_stage1"] = _fitting(path, hp, "enhancer-stage1", message)
        _check_measured(before.tensors, path)
        report_buffers(before, path, message)
        kept = {name: array for name, array in before.weights().items() if not name.startswith(FLOW)}
        weights |= _single(kept)
        buffers = before.stored_buffers()
    if hp.denoiser_run_dir is not None:
        denoiser, origin["denoiser"] = _fitting(hp.denoiser_run_dir, hp, "denoiser", message)
        weights |= {f"denoiser.{name}": array for name, array in _single(denoiser.weights()).items()}
    return Beginning(
        arrays_of(hp, weights, seed, config.optimizer), buffers, {"origin": origin} if origin else {}
    )


def _fitting(
    path: Path, hp: EnhancerHParams, stage: Stage, message: Callable[[str], object]
) -> tuple[Model, dict[str, Any]]:
    """Another model, once it is of this stage and its sizes are the same; and what a checkpoint says of it."""
    model, form = read_model(path, message)
    found = stage_of(model.hp)
    if found != stage:
        raise ConfigError(f"{path}: holds a model of kind '{found}'; {stage} is needed")
    different = different_sizes(hp, model.hp)
    if different:
        listing = "; ".join(f"{name}: it has {other}, this run {own}" for name, own, other in different)
        raise ConfigError(f"{path}: does not fit this run ({listing}); give equal sizes")
    where: dict[str, Any] = {"folder": str(path)}
    return model, where | ({"form": ABOUT[form]} if model.step is None else {"step": model.step})


def _single(arrays: NamedArrays) -> NamedArrays:
    # A model that is published in float16 goes on in float32, exactly.
    return {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in arrays.items()
    }


def _check_measured(weights: NamedArrays, path: Path) -> None:
    # A first stage that has made no update has no statistics, and nothing to build on.
    if np.isnan(weights["normalizer.running_mean_unsafe"]):
        raise ConfigError(f"{path}: has made no update yet; train the first stage before the second")
