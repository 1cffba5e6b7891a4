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

from parivox.checkpoint import Checkpoint, CheckpointMeta, latest_checkpoint, save_checkpoint
from parivox.deepspeed_config import TrainConfig
from parivox.errors import ConfigError
from parivox.hparams import HParams, check_same_run
from parivox.presets import default_hparams
from parivox.run_config import CONFIG_FILE, config_of, own_config, read_config, write_config
from parivox.run_start import first_checkpoint
from parivox.stages import Stage, different_sizes, hparams_class, stage_of
from parivox.weights import Initialization


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
    hp: HParams
    checkpoint: Checkpoint
    config: TrainConfig
    given: dict[str, Any] | None = None


@contextmanager
def locked(folder: Path, use: str = "a run folder", work: str = "training") -> Iterator[None]:
    """Keep a second process out of a folder; the lock goes with the process, however it ends.

    Args:
        folder: such as a run folder; made when needed.
        use: what it is for, in messages.
        work: what a process does there.

    Raises:
        ConfigError: another process works in this folder, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used as {use} ({error.strerror}); give another") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another process is {work} here; wait for it or use another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


def open_run(
    folder: Path,
    hp: HParams | None,
    *,
    seed: int | None,
    init: Initialization,
    keep: int,
    message: Callable[[str], None],
    deepspeed: Path | None = None,
    world_size: int = 1,
    stage: Stage = "denoiser",
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
        stage: what is to be trained.

    Raises:
        ConfigError: hyperparameters, DeepSpeed config or seed differ from the run's own, or are of another stage.
        CheckpointError: no checkpoint is whole, or a run that this one begins with does not fit.
    """
    kind, settings = hparams_class(stage), folder / "hparams.yaml"
    found = latest_checkpoint(folder, message)
    stored = _stored(found, seed, folder, stage) if found is not None else None
    if stored is not None and not settings.exists():
        stored.save(settings)  # it was removed; the checkpoint holds it too
    if settings.exists():
        own = kind.load(settings)
        if hp is not None:
            check_same_run(own, hp, folder)
        hp = own
    hp = hp or default_hparams(stage)
    if stage_of(hp) != stage:
        raise ConfigError(f"{settings}: is of {stage_of(hp)}, not of {stage}; use another run folder")
    if found is not None and stored is not None:
        _check_sizes(hp, stored, settings)
        given = own_config(folder, found.meta.extra.get("deepspeed"), deepspeed)
        path = None if given is None else folder / CONFIG_FILE
        return Run(folder, hp, found, config_of(hp, path, world_size), given)
    # All is read before anything is written: a mistake leaves no run behind.
    config = config_of(hp, deepspeed, world_size)
    given = None if deepspeed is None else read_config(deepspeed)
    begun = first_checkpoint(hp, seed or 0, init, config, message)
    extra = {**begun.origin, **({} if given is None else {"deepspeed": given})}
    meta = meta_of(hp, 0, 0, seed or 0, writer={"init": init}, config=config, extra=extra)
    hp.save(settings)
    if given is not None:
        write_config(folder, given)
    first = Checkpoint(begun.arrays, meta, begun.buffers)
    save_checkpoint(folder, first, keep=keep)
    return Run(folder, hp, first, config, given)


def _stored(found: Checkpoint, seed: int | None, folder: Path, stage: Stage) -> HParams:
    """The hyperparameters that a checkpoint was made with, once model and seed are those that are wanted."""
    meta = found.meta
    if meta.model != stage:
        raise ConfigError(f"{folder}: trains a model of kind '{meta.model}', not {stage}; use another folder")
    if seed is not None and seed != meta.seed:
        raise ConfigError(f"{folder}: was begun with seed {meta.seed}, given is {seed}; leave --seed out")
    return hparams_class(stage).from_dict(meta.hparams, f"{folder}: the checkpoint's hyperparameters")


def _check_sizes(hp: HParams, stored: HParams, settings: Path) -> None:
    # hparams.yaml may have been edited on purpose, to train longer say; what fixes the tensors may not change.
    for name, ours, theirs in different_sizes(hp, stored):
        raise ConfigError(
            f"{settings}: {name} is {ours}, the checkpoint was made with {theirs}; put it back, or start a new run"
            " folder"
        )


def meta_of(
    hp: HParams,
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
    """The metadata of a checkpoint.

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
        model=stage_of(hp),
        step=step,
        data_position={"records": records},
        seed=seed,
        hparams=hp.to_dict(),
        schedule={**scheduler, "last_batch_iteration": iteration},
        writer=writer or {},
        permanent=permanent,
        extra=extra or {},
    )
