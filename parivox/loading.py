"""A model for cleaning, from a run, one of its checkpoints, a published folder or a safetensors file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parivox.backend import NamedArrays
from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams, EnhancerHParams
from parivox.model_files import ABOUT, read_model, report_buffers
from parivox.stages import stage_of
from parivox.weights import denoiser_specs


@dataclass(frozen=True)
class Loaded:
    """What a backend makes a model for cleaning of.

    Attributes:
        hp: hyperparameters; their class says which model it is.
        weights: by public name; of an enhancer with the buffers that were stored.
        about: what was read, in a few words.
    """

    hp: DenoiserHParams | EnhancerHParams
    weights: NamedArrays
    about: str


def load_for_cleaning(
    path: Path, denoise_only: bool | None, message: Callable[[str], object] = print
) -> Loaded:
    """An enhancer that has been through both stages, or a denoiser.

    Args:
        path: of the model, in any form.
        denoise_only: True takes a denoiser, which may be that of an enhancer; False an enhancer; None what there is.
        message: called with one line for each damaged checkpoint that is skipped, one for buffers that differ
            from computed ones, and one before a download.

    Raises:
        CheckpointError: missing, damaged, or it does not fit its hyperparameters.
        ConfigError: the model is a first stage, or a denoiser where an enhancer is needed.
    """
    model, form = read_model(path, message)
    hp, about = model.hp, ABOUT[form] if model.step is None else f"step {model.step}"
    if stage_of(hp) == "enhancer-stage1":
        raise ConfigError(
            f"{path}: is the first stage of an enhancer, which cleans nothing yet; train the second with: parivox train"
            f" enhancer-stage2 NEW_RUN --enhancer-stage1-run-dir {path}"
        )
    if isinstance(hp, EnhancerHParams):
        if denoise_only:
            return own_denoiser(Loaded(hp, model.tensors, about))
        report_buffers(model, path, message)
        return Loaded(hp, model.tensors, about)
    if not isinstance(hp, DenoiserHParams) or denoise_only is False:
        raise ConfigError(f"{path}: holds a denoiser; use --denoise-only, or give an enhancer")
    names = denoiser_specs(hp.unet_hidden_dim)
    return Loaded(hp, {name: model.tensors[name] for name in names}, about)


def own_denoiser(model: Loaded) -> Loaded:
    """The denoiser that an enhancer holds, as a model of its own; a denoiser as it is."""
    if isinstance(model.hp, DenoiserHParams):
        return model
    hp = DenoiserHParams(unet_hidden_dim=model.hp.unet_hidden_dim)
    names = denoiser_specs(hp.unet_hidden_dim)
    return Loaded(hp, {name: model.weights[f"denoiser.{name}"] for name in names}, model.about)
