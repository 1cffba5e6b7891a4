"""Hyperparameters of the denoiser and the enhancer, with the names and defaults of Resemble Enhance.

A run's `hparams.yaml` holds every field by its name, so that published and own files are one form.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from parivox.atomic import write_text
from parivox.errors import ConfigError
from parivox.hparams_check import check_names, checked, read_mapping, refuse, write_mapping

WAV_RATE = 44_100
"""Samples a second of everything the models hear and say."""

VOCODER_HOP = 420
"""Samples that the enhancer's vocoder makes of a frame."""

STFT_HOPS = (100, 256, 512)
"""Hops of the multi-resolution STFT, in samples."""


class WavRateError(ConfigError, AssertionError):
    """Another sample rate than 44,100 Hz. An AssertionError, as in the published program."""


_H = TypeVar("_H", bound="HParams")
_Class = TypeVar("_Class", bound=type)


def _checks_itself(cls: _Class) -> _Class:
    # The constructor takes text for a Path and a list for a tuple, and answers nonsense with a ConfigError;
    # a run-time type checker in front of it would do neither.
    typing.no_type_check(cls.__init__)
    return cls


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    """Field name -> resolved annotation."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@_checks_itself
@dataclass(frozen=True)
class HParams:
    """What both models share. Lengths in samples, times in seconds; the rate is 44,100 Hz.

    Raises:
        ConfigError: a value makes no sense; names the field, the value and what is allowed.
    """

    fg_dir: Path = Path("data/fg")
    bg_dir: Path = Path("data/bg")
    rir_dir: Path = Path("data/rir")
    load_fg_only: bool = False
    praat_augment_prob: float = 0

    wav_rate: int = WAV_RATE
    n_fft: int = 2048
    win_size: int = 2048
    hop_size: int = 420
    num_mels: int = 128
    stft_magnitude_min: float = 1e-4
    preemphasis: float = 0.97
    mix_alpha_range: tuple[float, float] = (0.2, 0.8)

    nj: int = 64
    training_seconds: float = 1.0
    batch_size_per_gpu: int = 16
    min_lr: float = 1e-5
    max_lr: float = 1e-4
    warmup_steps: int = 1000
    max_steps: int = 1_000_000
    gradient_clipping: float = 1.0

    def __post_init__(self) -> None:
        """Check every value and bring it to the type of its field."""
        for name, kind in _kinds(type(self)).items():
            object.__setattr__(self, name, checked(name, getattr(self, name), kind))
        if self.min_lr > self.max_lr:
            raise refuse("min_lr", self.min_lr, f"at most max_lr, which is {self.max_lr!r}")
        if self.win_size > self.n_fft:
            raise refuse("win_size", self.win_size, f"at most n_fft, which is {self.n_fft}")

    @property
    def stft_cfgs(self) -> list[dict[str, int]]:
        """Settings of the multi-resolution STFT: n_fft, hop_length and win_length of each resolution.

        The window is four hops; n_fft is the next power of two that is not shorter than the window.

        Raises:
            WavRateError: an AssertionError; `wav_rate` is not 44,100. Raised under `python -O` too.
        """
        self._check_rate()
        return [
            {"n_fft": 1 << (4 * hop - 1).bit_length(), "hop_length": hop, "win_length": 4 * hop}
            for hop in STFT_HOPS
        ]

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """The configuration that `deepspeed.initialize` takes, as a plain dict."""
        schedule = {
            "warmup_min_lr": float(self.min_lr),
            "warmup_max_lr": float(self.max_lr),
            "warmup_num_steps": self.warmup_steps,
            "total_num_steps": self.max_steps,
            "warmup_type": "linear",
        }
        return {
            "train_micro_batch_size_per_gpu": self.batch_size_per_gpu,
            "optimizer": {"type": "Adam", "params": {"lr": float(self.min_lr)}},
            "scheduler": {"type": "WarmupDecayLR", "params": schedule},
            "gradient_clipping": self.gradient_clipping,
        }

    def to_dict(self) -> dict[str, Any]:
        """Every field by name as plain YAML and JSON values: Paths as text, tuples as lists."""
        return {name: _plain(getattr(self, name)) for name in _kinds(type(self))}

    @classmethod
    def from_dict(cls: type[_H], values: Mapping[str, Any], where: str = "hyperparameters") -> _H:
        """The inverse of `to_dict`; fields that are absent take their defaults.

        Args:
            values: field name to value.
            where: what the error message names, such as the file.

        Raises:
            ConfigError: unknown names, or a value that makes no sense.
        """
        check_names(values, _kinds(cls), where)
        try:
            made = cls(**values)
            made._check_rate()
        except WavRateError as error:
            raise WavRateError(f"{where}: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return made

    @classmethod
    def load(cls: type[_H], path: str | Path) -> _H:
        """Read a YAML file; call it on the class of the model that is trained.

        Raises:
            ConfigError: the file cannot be read, holds unknown names, or a value makes no sense.
        """
        return cls.from_dict(read_mapping(Path(path)), str(path))

    def save(self, path: str | Path) -> None:
        """Write every field to a YAML file that appears whole or not at all.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            write_text(Path(path), write_mapping(self.to_dict()))
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be written ({error.strerror}); choose another place"
            ) from error

    def replace(self: _H, **overrides: Any) -> _H:
        """A copy with some fields changed.

        Raises:
            ConfigError: unknown names, or a value that makes no sense.
        """
        return self.from_dict({**{n: getattr(self, n) for n in _kinds(type(self))}, **overrides})

    def _check_rate(self) -> None:
        # Not an assert statement: those vanish under python -O.
        if self.wav_rate != WAV_RATE:
            raise WavRateError(f"wav_rate is {self.wav_rate}; it must be {WAV_RATE}, files are resampled")


@_checks_itself
@dataclass(frozen=True)
class DenoiserHParams(HParams):
    """The denoiser's own fields; `unet_hidden_dim=16` is the published width."""

    batch_size_per_gpu: int = 128
    distort_prob: float = 0.5
    unet_hidden_dim: int = 16

    def __post_init__(self) -> None:
        """Check every value and bring it to the type of its field."""
        super().__post_init__()
        _check_unet(self.unet_hidden_dim)


@_checks_itself
@dataclass(frozen=True)
class EnhancerHParams(HParams):
    """The enhancer's own fields; the last four are widths and depths with the published values.

    `lcfm_training_mode` is the stage: "ae" trains auto-encoder and vocoder, "cfm" the flow. The second one has no
    discriminator, whatever `gan_training_start_step` says.
    """

    cfm_solver_method: Literal["midpoint", "euler", "rk4"] = "midpoint"
    cfm_solver_nfe: int = 64
    cfm_time_mapping_divisor: int = 4
    univnet_nc: int = 96

    lcfm_latent_dim: int = 64
    lcfm_training_mode: Literal["ae", "cfm"] = "ae"
    lcfm_z_scale: float = 5

    vocoder_extra_dim: int = 32

    gan_training_start_step: int | None = 5_000
    enhancer_stage1_run_dir: Path | None = None
    denoiser_run_dir: Path | None = None
    force_gaussian_prior: bool = False

    irmae_hidden_dim: int = 1024
    wn_hidden_dim: int = 512
    wn_layers: int = 30
    unet_hidden_dim: int = 16

    def __post_init__(self) -> None:
        """Check every value and bring it to the type of its field."""
        super().__post_init__()
        _check_unet(self.unet_hidden_dim)
        if self.irmae_hidden_dim % 32:
            raise refuse("irmae_hidden_dim", self.irmae_hidden_dim, "a multiple of 32, its norm groups")
        if self.hop_size != VOCODER_HOP:
            raise refuse("hop_size", self.hop_size, f"{VOCODER_HOP}, what the vocoder makes of a frame")
        if self.win_size != self.n_fft:
            raise refuse("win_size", self.win_size, f"the enhancer's n_fft, which is {self.n_fft}")
        if self.lcfm_training_mode == "ae" and self.enhancer_stage1_run_dir is not None:
            raise refuse(
                "enhancer_stage1_run_dir",
                self.enhancer_stage1_run_dir,
                "left out in the first stage (lcfm_training_mode 'ae'); the second one begins with it",
            )


def _check_unet(dim: int) -> None:
    # Norms have dim // 16 groups (one below 16), and the width doubles from level to level.
    if dim not in (1, 2, 4, 8) and dim % 16:
        raise refuse("unet_hidden_dim", dim, "1, 2, 4, 8 or a multiple of 16")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def differences(a: HParams, b: HParams) -> list[tuple[str, Any, Any]]:
    """Fields whose values differ, as (name, value in a, value in b); a field that one lacks is '(absent)'."""
    one, two = a.to_dict(), b.to_dict()
    names = [*one, *(name for name in two if name not in one)]
    pairs = [(name, one.get(name, "(absent)"), two.get(name, "(absent)")) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def check_same_run(run_dir_hparams: HParams, given: HParams, run_dir: str | Path) -> None:
    """Refuse to go on with a run under other hyperparameters than it was begun with.

    Args:
        run_dir_hparams: what the run folder's `hparams.yaml` holds.
        given: what the caller asks for.
        run_dir: the run folder, for the message.

    Raises:
        ConfigError: listing each field that differs, and the remedy.
    """
    found = differences(run_dir_hparams, given)
    if found:
        listing = "; ".join(f"{name}: run has {ours!r}, given is {theirs!r}" for name, ours, theirs in found)
        remedy = "edit that file on purpose, or start a new run folder"
        raise ConfigError(
            f"{Path(run_dir) / 'hparams.yaml'} differs from what was given ({listing}); {remedy}"
        )
