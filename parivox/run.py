"""A run folder: what it holds, who works in it, and where training goes on.

RUN/hparams.yaml      hyperparameters, fixed once the run has begun
RUN/deepspeed.json    the DeepSpeed config, where one was given; fixed as well
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

from parivox.backend import first_arrays
from parivox.checkpoint import Checkpoint, CheckpointMeta, latest_checkpoint, load_weights, save_checkpoint
from parivox.deepspeed_config import TrainConfig
from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams, check_same_run
from parivox.run_config import CONFIG_FILE, config_of, own_config, read_config, write_config
from parivox.weights import Initialization, initial_denoiser

MODEL = "denoiser"


@dataclass(frozen=True)
class Run:
    """A run folder that has been opened.

    Attributes:
        folder: the run folder.
        hp: its hyperparameters.
        checkpoint: where training goes on; of step 0 in a new run.
        config: how it is trained.
        given: the DeepSpeed config as it was given; None where the hyperparameters' own is used.
    """

    folder: Path
    hp: DenoiserHParams
    checkpoint: Checkpoint
    config: TrainConfig
    given: dict[str, Any] | None = None


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
    deepspeed: Path | None = None,
    world_size: int = 1,
) -> Run:
    """Begin a run, or find where it stands.

    Args:
        folder: the run folder, locked.
        hp: what the caller asks for; None takes the run's own, or the defaults of a new run.
        seed: of initial weights and data; None takes the run's own, or 0 in a new run.
        init: initial weights of a new run.
        keep: ordinary checkpoints to keep.
        message: gets lines about damaged checkpoints.
        deepspeed: a DeepSpeed config file; None takes the run's own, or that of the hyperparameters.
        world_size: data-parallel ranks.

    Raises:
        ConfigError: hyperparameters, DeepSpeed config or seed differ from the run's own.
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
        given = own_config(folder, found.meta.extra.get("deepspeed"), deepspeed)
        path = None if given is None else folder / CONFIG_FILE
        return Run(folder, hp, found, config_of(hp, path, world_size), given)
    # All is read before anything is written: a mistake leaves no run behind.
    config = config_of(hp, deepspeed, world_size)
    hp.save(settings)
    given = None
    if deepspeed is not None:
        given = read_config(deepspeed)
        write_config(folder, given)
    first = _first_checkpoint(hp, seed or 0, init, config, given)
    save_checkpoint(folder, first, keep=keep)
    return Run(folder, hp, first, config, given)


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


def _first_checkpoint(
    hp: DenoiserHParams, seed: int, init: Initialization, config: TrainConfig, given: dict[str, Any] | None
) -> Checkpoint:
    arrays = first_arrays(initial_denoiser(seed, hp.unet_hidden_dim, init), config.optimizer)
    extra = {} if given is None else {"deepspeed": given}
    return Checkpoint(arrays, meta_of(hp, 0, 0, seed, writer={"init": init}, config=config, extra=extra))


def meta_of(
    hp: DenoiserHParams,
    step: int,
    records: int,
    seed: int,
    *,
    writer: dict[str, Any] | None = None,
    permanent: bool = False,
    extra: dict[str, Any] | None = None,
    config: TrainConfig | None = None,
    updates: int | None = None,
) -> CheckpointMeta:
    """The metadata of a denoiser checkpoint.

    Args:
        hp: hyperparameters of the run.
        step: batches used so far.
        records: position in the data stream.
        seed: of the run.
        writer: what wrote it.
        permanent: never deleted.
        extra: anything else.
        config: how the run is trained; None where the hyperparameters' own config is used.
        updates: updates made so far; None where every batch made one.
    """
    scheduler = (config.deepspeed if config else hp.deepspeed_config).get("scheduler", {"type": None})
    iteration = (step if updates is None else updates) - 1
    return CheckpointMeta(
        model=MODEL,
        step=step,
        data_position={"records": records},
        seed=seed,
        hparams=hp.to_dict(),
        schedule={**scheduler, "last_batch_iteration": iteration},
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
