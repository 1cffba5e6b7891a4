"""A run folder: what it holds, who works in it, and where training goes on.

RUN/hparams.yaml      hyperparameters, fixed once the run has begun
RUN/checkpoints/      step-00000100.safetensors, ...
RUN/metrics.jsonl     one line an update
RUN/tensorboard/      the same for TensorBoard
RUN/eval/             sound and pictures of each evaluation
RUN/summary.json      what came of it
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parivox.backend import TrainArrays
from parivox.checkpoint import Checkpoint, CheckpointMeta, latest_checkpoint, load_weights, save_checkpoint
from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams, check_same_run
from parivox.weights import Initialization, initial_denoiser

MODEL = "denoiser"


@dataclass(frozen=True)
class Run:
    """A run folder that has been opened.

    Attributes:
        folder: the run folder.
        hp: its hyperparameters.
        checkpoint: where training goes on; of step 0 in a new run.
    """

    folder: Path
    hp: DenoiserHParams
    checkpoint: Checkpoint


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second training process out of a run folder; the lock goes with the process, however it ends.

    Raises:
        ConfigError: another process trains in this folder, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be used as a run folder ({error.strerror}); give another"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another process is training here; wait for it or use another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


def open_run(
    folder: Path,
    hp: DenoiserHParams | None,
    *,
    seed: int | None,
    init: Initialization,
    keep: int,
    message: Callable[[str], None],
) -> Run:
    """Begin a run, or find where it stands.

    Args:
        folder: the run folder, locked.
        hp: what the caller asks for; None takes the run's own, or the defaults of a new run.
        seed: of initial weights and data; None takes the run's own, or 0 in a new run.
        init: initial weights of a new run.
        keep: ordinary checkpoints to keep.
        message: gets lines about damaged checkpoints.

    Raises:
        ConfigError: hyperparameters or seed differ from the run's own.
        CheckpointError: no checkpoint is whole.
    """
    settings = folder / "hparams.yaml"
    found = latest_checkpoint(folder, message)
    stored = _stored(found, seed, folder) if found is not None else None
    if stored is not None and not settings.exists():
        stored.save(settings)  # it was removed; the checkpoint holds it too
    if settings.exists():
        own = DenoiserHParams.load(settings)
        if hp is not None:
            check_same_run(own, hp, folder)
        hp = own
    hp = hp or DenoiserHParams()
    if found is not None and stored is not None:
        _check_width(hp, stored, settings)
        return Run(folder, hp, found)
    hp.save(settings)
    first = _first_checkpoint(hp, seed or 0, init)
    save_checkpoint(folder, first, keep=keep)
    return Run(folder, hp, first)


def _stored(found: Checkpoint, seed: int | None, folder: Path) -> DenoiserHParams:
    """The hyperparameters that a checkpoint was made with, once model and seed are those that are wanted."""
    meta = found.meta
    if meta.model != MODEL:
        raise ConfigError(
            f"{folder}: trains a model of kind '{meta.model}', not a {MODEL}; use another folder"
        )
    if seed is not None and seed != meta.seed:
        raise ConfigError(f"{folder}: was begun with seed {meta.seed}, given is {seed}; leave --seed out")
    return DenoiserHParams.from_dict(meta.hparams, f"{folder}: the checkpoint's hyperparameters")


def _check_width(hp: DenoiserHParams, stored: DenoiserHParams, settings: Path) -> None:
    # hparams.yaml may have been edited on purpose, to train longer say; what fixes the tensors may not change.
    if hp.unet_hidden_dim != stored.unet_hidden_dim:
        raise ConfigError(
            f"{settings}: unet_hidden_dim is {hp.unet_hidden_dim}, the checkpoint was made with"
            f" {stored.unet_hidden_dim}; put it back, or start a new run folder"
        )


def _first_checkpoint(hp: DenoiserHParams, seed: int, init: Initialization) -> Checkpoint:
    weights = initial_denoiser(seed, hp.unet_hidden_dim, init)
    zeros = {name: np.zeros_like(array) for name, array in weights.items()}
    arrays = TrainArrays(weights, zeros, {name: array.copy() for name, array in zeros.items()}, 0)
    return Checkpoint(arrays, meta_of(hp, 0, 0, seed, writer={"init": init}))


def meta_of(
    hp: DenoiserHParams,
    step: int,
    records: int,
    seed: int,
    *,
    writer: dict[str, Any] | None = None,
    permanent: bool = False,
    extra: dict[str, Any] | None = None,
) -> CheckpointMeta:
    """The metadata of a denoiser checkpoint; `records` is the position in the data stream."""
    schedule = {**hp.deepspeed_config["scheduler"], "last_batch_iteration": step - 1}
    return CheckpointMeta(
        model=MODEL,
        step=step,
        data_position={"records": records},
        seed=seed,
        hparams=hp.to_dict(),
        schedule=schedule,
        writer=writer or {},
        permanent=permanent,
        extra=extra or {},
    )


def load_run_weights(
    path: Path, message: Callable[[str], object] = print
) -> tuple[dict[str, np.ndarray], DenoiserHParams, CheckpointMeta]:
    """Weights and hyperparameters for inference, of a run folder or one checkpoint file.

    Raises:
        CheckpointError: no such run, or none of its checkpoints is whole.
        ConfigError: it is not a denoiser.
    """
    weights, meta = load_weights(path, message)
    if meta.model != MODEL:
        raise ConfigError(f"{path}: holds a model of kind '{meta.model}'; a {MODEL} is needed")
    return weights, DenoiserHParams.from_dict(meta.hparams, f"{path}: hyperparameters"), meta
