"""Models too narrow to be good and quick to run, and recordings for them, for tests of the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from parity_tests import seeded
from parivox.audio import write_audio
from parivox.backend import NamedArrays, TrainArrays
from parivox.checkpoint import Checkpoint, save_checkpoint
from parivox.hparams import DenoiserHParams, EnhancerHParams
from parivox.model_kinds import KINDS
from parivox.run import meta_of
from parivox.run_config import config_of
from parivox.run_start import arrays_of
from parivox.weights import initial_denoiser

SECONDS = 0.3
"""Length of every recording; at every rate it becomes 13,230 samples at 44,100 Hz, so JAX compiles once."""


def tiny_run(folder: Path, hp: DenoiserHParams | None = None, step: int = 0) -> Path:
    """A run folder with one checkpoint of initial weights; these do not pass the sound through."""
    hp = hp or DenoiserHParams(unet_hidden_dim=2)
    weights = initial_denoiser(1, hp.unet_hidden_dim, "published")
    zeros = {name: np.zeros_like(array) for name, array in weights.items()}
    arrays = TrainArrays(weights, zeros, {name: array.copy() for name, array in zeros.items()}, step)
    hp.save(folder / "hparams.yaml")
    records = step * hp.batch_size_per_gpu
    save_checkpoint(folder, Checkpoint(arrays, meta_of(hp, step, records, 0)))
    return folder


NARROW = EnhancerHParams(
    lcfm_training_mode="cfm",
    gan_training_start_step=None,
    lcfm_z_scale=6,
    cfm_solver_nfe=4,
    irmae_hidden_dim=32,
    wn_hidden_dim=8,
    wn_layers=2,
    univnet_nc=4,
    lcfm_latent_dim=4,
    unet_hidden_dim=1,
)
"""A second stage."""


def enhancer_weights(hp: EnhancerHParams = NARROW) -> NamedArrays:
    """Parameters and statistics of an enhancer that makes loud sounds."""
    return seeded.weights(KINDS["enhancer"].weights(hp), 20)


def enhancer_run(folder: Path, hp: EnhancerHParams = NARROW, step: int = 0) -> Path:
    """A run folder with one checkpoint of an enhancer."""
    arrays = dataclasses.replace(
        arrays_of(hp, enhancer_weights(hp), 0, config_of(hp, None).optimizer), step=step
    )
    hp.save(folder / "hparams.yaml")
    save_checkpoint(folder, Checkpoint(arrays, meta_of(hp, step, 0, 0)))
    return folder


def recording(path: Path, rate: int = 44_100, channels: int = 1, subtype: str | None = None) -> Path:
    """A rising tone over noise, another one in each channel; well below full scale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(SECONDS * rate)) / rate
    rng = np.random.default_rng(channels)
    rows = [0.2 * np.sin(2 * np.pi * (300 + 200 * c + 400 * t) * t) for c in range(channels)]
    wav = np.stack(rows) + 0.02 * rng.standard_normal((channels, t.size))
    write_audio(path, wav.astype(np.float32), rate, subtype=subtype)
    return path
