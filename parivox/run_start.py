"""The weights that a run begins with: drawn from its seed, or another run's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from parivox.backend import NamedArrays, TrainArrays, first_arrays
from parivox.checkpoint import Checkpoint, load_weights
from parivox.deepspeed_config import OptimizerConfig, TrainConfig
from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.stages import different_sizes, has_judge, hparams_class, stage_of
from parivox.weights import Initialization, check_arrays, denoiser_specs, initial_denoiser
from parivox.weights_discriminator import initial_discriminator
from parivox.weights_enhancer import check_enhancer, initial_enhancer, trained_names

FLOW = "lcfm.cfm."
"""Before the names of the flow's parameters, which the second stage begins anew."""


def first_checkpoint(
    hp: HParams,
    seed: int,
    init: Initialization,
    config: TrainConfig,
    message: Callable[[str], object] = print,
) -> tuple[TrainArrays, dict[str, Any]]:
    """The state of step 0, and where its weights come from.

    The enhancer takes its denoiser from `denoiser_run_dir`, where one is given. The second stage takes everything
    but the flow from `enhancer_stage1_run_dir`.

    Raises:
        ConfigError: the second stage is given no first one, or sizes differ.
        CheckpointError: a run that is named holds no whole checkpoint.
    """
    if isinstance(hp, EnhancerHParams):
        return _enhancer(hp, seed, init, config, message)
    width = hp.unet_hidden_dim if isinstance(hp, DenoiserHParams) else 0
    return arrays_of(hp, initial_denoiser(seed, width, init), seed, config.optimizer), {}


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
) -> tuple[TrainArrays, dict[str, Any]]:
    weights, origin = initial_enhancer(seed, hp, init), {}
    if stage_of(hp) == "enhancer-stage2":
        if hp.enhancer_stage1_run_dir is None:
            raise ConfigError(
                "enhancer_stage1_run_dir is not given; the second stage begins with the auto-encoder and the vocoder of"
                " the first: give --enhancer-stage1-run-dir"
            )
        before, step = _weights_of(hp.enhancer_stage1_run_dir, hp, "enhancer-stage1", message)
        check_enhancer(before, hp, str(hp.enhancer_stage1_run_dir))
        _check_measured(before, hp.enhancer_stage1_run_dir)
        weights |= {name: array for name, array in before.items() if not name.startswith(FLOW)}
        origin["enhancer_stage1"] = {"folder": str(hp.enhancer_stage1_run_dir), "step": step}
    if hp.denoiser_run_dir is not None:
        denoiser, step = _weights_of(hp.denoiser_run_dir, hp, "denoiser", message)
        shapes = {name: spec.shape for name, spec in denoiser_specs(hp.unet_hidden_dim).items()}
        check_arrays(shapes, denoiser, str(hp.denoiser_run_dir))
        weights |= {f"denoiser.{name}": denoiser[name] for name in shapes}
        origin["denoiser"] = {"folder": str(hp.denoiser_run_dir), "step": step}
    return arrays_of(hp, weights, seed, config.optimizer), {"origin": origin} if origin else {}


def _weights_of(
    path: Path, hp: EnhancerHParams, stage: str, message: Callable[[str], object]
) -> tuple[NamedArrays, int]:
    """Weights of another run, once it is of this stage and its sizes are the same; and its step."""
    weights, meta = load_weights(path, message)
    if meta.model != stage:
        raise ConfigError(f"{path}: holds a model of kind '{meta.model}'; {stage} is needed")
    theirs = hparams_class(stage).from_dict(meta.hparams, f"{path}: hyperparameters")
    different = different_sizes(hp, theirs)
    if different:
        listing = "; ".join(f"{name}: it has {other}, this run {own}" for name, own, other in different)
        raise ConfigError(f"{path}: does not fit this run ({listing}); give equal sizes")
    return weights, meta.step


def _check_measured(weights: NamedArrays, path: Path) -> None:
    # A first stage that has made no update has no statistics, and nothing to build on.
    if np.isnan(weights["normalizer.running_mean_unsafe"]):
        raise ConfigError(f"{path}: has made no update yet; train the first stage before the second")
