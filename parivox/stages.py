"""What can be trained: the denoiser, and the enhancer in two stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, TypeVar

from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.hparams_check import read_mapping

Stage = Literal["denoiser", "enhancer-stage1", "enhancer-stage2"]
"""What a run trains, as its checkpoints call it."""

STAGES: tuple[Stage, ...] = ("denoiser", "enhancer-stage1", "enhancer-stage2")

JUDGE = "discriminator."
"""Before the names of the discriminator's tensors where they stand beside the enhancer's."""

SHAPING = (
    "n_fft",
    "win_size",
    "hop_size",
    "num_mels",
    "stft_magnitude_min",
    "preemphasis",
    "cfm_solver_method",
    "cfm_solver_nfe",
    "cfm_time_mapping_divisor",
    "univnet_nc",
    "lcfm_latent_dim",
    "lcfm_training_mode",
    "lcfm_z_scale",
    "vocoder_extra_dim",
    "force_gaussian_prior",
    "irmae_hidden_dim",
    "wn_hidden_dim",
    "wn_layers",
    "unet_hidden_dim",
)
"""Hyperparameters that a backend's programs depend on; the others are those of data, optimizer and folders."""

SIZES = (
    "num_mels",
    "univnet_nc",
    "lcfm_latent_dim",
    "vocoder_extra_dim",
    "irmae_hidden_dim",
    "wn_hidden_dim",
    "wn_layers",
    "unet_hidden_dim",
)
"""Hyperparameters that fix names and shapes of tensors."""

H = TypeVar("H", bound=HParams)


def stage_of(hp: HParams) -> Stage:
    """What these hyperparameters train.

    Raises:
        ConfigError: they are of no model.
    """
    if isinstance(hp, EnhancerHParams):
        return "enhancer-stage1" if hp.lcfm_training_mode == "ae" else "enhancer-stage2"
    if isinstance(hp, DenoiserHParams):
        return "denoiser"
    raise ConfigError("plain HParams train no model; use DenoiserHParams or EnhancerHParams")


def hparams_class(stage: str) -> type[DenoiserHParams] | type[EnhancerHParams]:
    """The class of a stage's hyperparameters."""
    return DenoiserHParams if stage == "denoiser" else EnhancerHParams


def load_hparams(path: Path) -> DenoiserHParams | EnhancerHParams:
    """Read a YAML file of either model; the enhancer's is known by its own names.

    Raises:
        ConfigError: as `HParams.load`.
    """
    values = read_mapping(path)
    enhancer = "lcfm_training_mode" in values
    return (EnhancerHParams if enhancer else DenoiserHParams).from_dict(values, str(path))


def structure(hp: H) -> H:
    """The hyperparameters with all that no program depends on at its default: equal ones share a program."""
    own = {field.name: getattr(hp, field.name) for field in dataclasses.fields(hp) if field.name in SHAPING}
    return type(hp)(**own)


def has_judge(hp: HParams) -> bool:
    """Whether a run with these hyperparameters has a discriminator."""
    return (
        isinstance(hp, EnhancerHParams)
        and hp.lcfm_training_mode == "ae"
        and hp.gan_training_start_step is not None
    )


def is_judged(hp: HParams, step: int) -> bool:
    """Whether the discriminator takes part in the update after `step` updates."""
    start = hp.gan_training_start_step if isinstance(hp, EnhancerHParams) and has_judge(hp) else None
    return start is not None and step >= start


def different_sizes(one: HParams, other: HParams) -> list[tuple[str, int, int]]:
    """Hyperparameters that fix the tensors and differ, as (name, in one, in the other)."""
    names = [name for name in SIZES if hasattr(one, name) and hasattr(other, name)]
    pairs = [(name, getattr(one, name), getattr(other, name)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]
