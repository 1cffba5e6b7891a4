"""The kinds of model that a checkpoint can hold: their hyperparameters, tensors and computed buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from parivox.backend import NamedArrays
from parivox.enhancer_tables import computed_buffers
from parivox.errors import ConfigError
from parivox.features import MelSpec, hann_window, mel_filter_bank
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.stages import STAGES
from parivox.weights import denoiser_specs
from parivox.weights_enhancer import STATISTICS, enhancer_specs

Shapes = dict[str, tuple[int, ...]]

OWN_FIELDS = ("unet_hidden_dim", "irmae_hidden_dim", "wn_hidden_dim", "wn_layers")
"""Hyperparameters that the published program does not know; it has their default values."""

ROUNDING = 64 * 2.0**-23
"""A stored buffer may lie this far from the computed one, relative to its largest value, beside the rounding of its
own dtype: the published filter bank is computed in float32, and off by 24 * 2**-23."""


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        name: as checkpoints call it.
        hparams: class of its hyperparameters.
        weights: names and shapes of all that training changes, from the hyperparameters.
        buffers: the computed buffers of a published checkpoint, float64.
    """

    name: str
    hparams: type[HParams]
    weights: Callable[[Any], Shapes]
    buffers: Callable[[Any], NamedArrays]

    def shapes(self, hp: HParams) -> Shapes:
        """Names and shapes of every tensor of a published checkpoint."""
        return self.weights(hp) | {name: buffer.shape for name, buffer in self.buffers(hp).items()}

    def strange_buffers(self, hp: HParams, tensors: NamedArrays) -> list[str]:
        """Stored buffers that differ from the computed ones by more than rounding, each with the difference."""
        found = []
        for name, computed in self.buffers(hp).items():
            stored = tensors[name]
            largest = float(np.abs(computed).max(initial=0))
            error = float(np.abs(stored.astype(np.float64) - computed).max(initial=0))
            if not error <= (ROUNDING + float(np.finfo(stored.dtype).eps)) * largest:
                found.append(f"{name} (by {error:.1e}, its largest value is {largest:.1e})")
        return found


def _denoiser_buffers(hp: DenoiserHParams) -> NamedArrays:
    spec = MelSpec()
    return {
        "mel_fn.stft_magnitude_min": np.array([spec.magnitude_min]),
        "mel_fn.melspec.spectrogram.window": hann_window(spec.stft.n_fft),
        "mel_fn.melspec.mel_scale.fb": mel_filter_bank(n_fft=spec.stft.n_fft, num_mels=spec.num_mels),
    }


def _denoiser_weights(hp: DenoiserHParams) -> Shapes:
    return {name: spec.shape for name, spec in denoiser_specs(hp.unet_hidden_dim).items()}


def _enhancer_weights(hp: EnhancerHParams) -> Shapes:
    shapes = {name: spec.shape for name, spec in enhancer_specs(hp).items()}
    return shapes | {name: () for name in STATISTICS}


KINDS: dict[str, Kind] = {
    "denoiser": Kind("denoiser", DenoiserHParams, _denoiser_weights, _denoiser_buffers),
    "enhancer": Kind("enhancer", EnhancerHParams, _enhancer_weights, computed_buffers),
}


def kind_named(name: str, where: str) -> Kind:
    """The kind that a checkpoint names, or the one of the stage that it names.

    Raises:
        ConfigError: unknown.
    """
    kind = name.partition("-")[0] if name in STAGES else name
    if kind not in KINDS:
        raise ConfigError(f"{where}: holds a model of kind '{name}'; known are {', '.join(KINDS)}")
    return KINDS[kind]


def kind_of(values: Mapping[str, Any], tensors: Iterable[str]) -> Kind:
    """The kind of a published checkpoint, after the names of its hyperparameters, or else of its tensors."""
    names = {kind: {item.name for item in fields(KINDS[kind].hparams)} for kind in KINDS}
    if values.keys() & (names["enhancer"] - names["denoiser"]):
        return KINDS["enhancer"]
    if values.keys() & (names["denoiser"] - names["enhancer"]):
        return KINDS["denoiser"]
    return KINDS["enhancer" if any(name.startswith("vocoder.") for name in tensors) else "denoiser"]
